"""The causal language model that CoLLaMo is built around: loaded, and told about molecules."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, cast

import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.constants import ENDPOINT
from huggingface_hub.errors import (
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedModel,
)
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.utils import is_bitsandbytes_available, is_flash_attn_2_available

from collamo.errors import MissingDependencyError, UsageError
from collamo.model.checksums import verify_checksums
from collamo.model.configuration import LLAMA2_7B, MOL_TOKEN
from collamo.model.gguf_file import SMOLLM2, gguf_file, open_gguf

Quantization = Literal["4bit"]

#: LLaMA-2-chat's own form, for downloads of it that came without one; its turns are stripped.
LLAMA2_CHAT_TEMPLATE = """\
{%- if messages[0]['role'] == 'system' -%}
{%- set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' -%}
{%- set turns = messages[1:] -%}
{%- else -%}
{%- set system = '' -%}
{%- set turns = messages -%}
{%- endif -%}
{%- for turn in turns -%}
{%- if (turn['role'] == 'user') != (loop.index0 % 2 == 0) -%}
{{- raise_exception('turns must alternate: user, assistant, user, …') -}}
{%- endif -%}
{%- if turn['role'] == 'user' -%}
{{- bos_token + '[INST] ' + (system if loop.first else '') + turn['content'] | trim + ' [/INST]' -}}
{%- else -%}
{{- ' ' + turn['content'] | trim + ' ' + eos_token -}}
{%- endif -%}
{%- endfor -%}
"""

#: ChatML as SmolLM2 learned it, without the system message in which it calls itself SmolLM: the
#: model built around it is another one, and the message would be a fifth of a short dialogue.
CHATML_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""

# What a model hub takes for a name: "gpt2" or "owner/name". Anything else can only be a folder.
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
#: Longest wait for the hub's answer to whether it has a model.
HUB_SECONDS = 10
_MAKE_ONE = (
    "; `collamo train configs/tiny_lm.yaml` makes a small one in demo/tiny_lm/final, or give the "
    "folder of another"
)


def load_language_model(
    name: str | Path,
    dtype: torch.dtype | None = None,
    attn_implementation: str | None = None,
    quantization: Quantization | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model from safetensors (a pickle runs code when opened) or GGUF.

    Parameters are those of `build_model`; errors of a GGUF file are those of `open_gguf`.

    Raises
    ------
    MissingDependencyError
        If its files, or the package an option needs, are not there.
    UsageError
        For an attention implementation that transformers does not know.
    """
    file = gguf_file(name)
    if file is not None:
        return _load_gguf(file, dtype, attn_implementation, quantization)
    if Path(name).is_dir():
        _check_folder(Path(name))
    else:
        _check_hub(name)
    options: dict[str, Any] = {
        "use_safetensors": True,
        "dtype": dtype,
        "attn_implementation": attn_implementation,
    }
    if quantization is not None:
        options["quantization_config"] = _four_bits(dtype)
    options = {key: value for key, value in options.items() if value is not None}
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(name))
        model = AutoModelForCausalLM.from_pretrained(str(name), **options)
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise MissingDependencyError(
            f"language model '{name}' cannot be loaded: {reason}; give a folder with its "
            "config, safetensors weights and tokenizer"
        ) from error
    except (ImportError, ValueError) as error:
        if attn_implementation is None:
            raise
        raise attention_error(attn_implementation, error) from error
    if attn_implementation is None:
        take_flash_attention(model)
    return model, tokenizer


def _load_gguf(
    file: Path,
    dtype: torch.dtype | None,
    attn_implementation: str | None,
    quantization: Quantization | None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if quantization is not None:
        raise UsageError(
            f"'{file}' cannot be held in {quantization}: its own blocks are unpacked; leave "
            "quantization out, or give a folder with safetensors weights"
        )
    model, tokenizer = open_gguf(file, dtype)
    if attn_implementation is None:
        take_flash_attention(model)
        return model, tokenizer
    try:
        model.set_attn_implementation(attn_implementation)
    except (ImportError, ValueError) as error:
        raise attention_error(attn_implementation, error) from error
    return model, tokenizer


def take_flash_attention(model: PreTrainedModel) -> None:
    """Let the language model use FlashAttention 2 where flash-attn is installed and can serve it.

    It can on a GPU, in float16 and bfloat16; elsewhere PyTorch's SDPA stays, transformers' choice.
    """
    half = model.dtype in (torch.float16, torch.bfloat16)
    if half and is_flash_attn_2_available() and model._supports_flash_attn:
        model.set_attn_implementation("flash_attention_2")


def attention_error(name: str, error: Exception) -> MissingDependencyError | UsageError:
    """Return what to raise where transformers refused an attention implementation."""
    reason = " ".join(str(error).split())
    if isinstance(error, ImportError):
        fix = "pip install 'collamo[gpu]', or leave attn_implementation out"
        return MissingDependencyError(f"attn_implementation {name!r}: {reason}; {fix}")
    return UsageError(f"attn_implementation {name!r}: {reason}")


def _four_bits(dtype: torch.dtype | None) -> BitsAndBytesConfig:
    """NF4, its scales quantized once more: QLoRA's (Dettmers et al. 2023, arXiv 2305.14314)."""
    need_bitsandbytes("quantization 4bit")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype or torch.bfloat16,
    )


def need_bitsandbytes(what: str) -> None:
    """Raise MissingDependencyError where bitsandbytes, which `what` needs, is not installed."""
    if not is_bitsandbytes_available():
        raise MissingDependencyError(
            f"{what} needs bitsandbytes: pip install 'collamo[quantization]'"
        )


def _check_folder(folder: Path) -> None:
    """Refuse a folder that is no model, or whose weights were altered."""
    if not (folder / "config.json").is_file():
        within = folder / "final"
        hint = f"; did you mean '{within}'?" if (within / "config.json").is_file() else ""
        if files := sorted(folder.glob("*.gguf")):
            hint = f"; give a GGUF file itself, such as '{files[0]}'"
        raise MissingDependencyError(
            f"language model folder '{folder}' has no config.json{hint or _MAKE_ONE}"
        )
    verify_checksums(folder)


def _check_hub(name: str | Path) -> None:
    """Refuse a name that is neither in the hub's cache nor, asked once, known to the hub.

    Without a network transformers would ask a dozen times in 45 seconds before it gives up.
    """
    parent = Path(name).parent
    beside = parent != Path() and parent.is_dir()  # demo/lm where demo is: a folder is meant
    if isinstance(name, Path) or beside or not _HUB_NAME.fullmatch(name):
        raise MissingDependencyError(f"language model folder '{name}' does not exist{_MAKE_ONE}")
    if isinstance(try_to_load_from_cache(name, "config.json"), str):
        return
    try:
        HfApi().model_info(name, timeout=HUB_SECONDS)
    except (RepositoryNotFoundError, HFValidationError):
        reason = f"{ENDPOINT} knows no such model, or it is a private one"
    except OfflineModeIsEnabled:
        reason = "HF_HUB_OFFLINE forbids looking elsewhere"
    except Exception as error:  # the hub's client raises those of httpx, and from 2.0 on of httpx2
        detail = " ".join(str(error).split())[:200] or type(error).__name__
        reason = f"{ENDPOINT} cannot be reached ({detail})"
    else:
        return
    raise MissingDependencyError(
        f"language model '{name}' is neither a folder here nor in the cache of downloads, and "
        f"{reason}{_MAKE_ONE}"
    )


def tell_about_molecules(source: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Give tokenizer and embeddings a `<mol>`, and the tokenizer a padding token and a length.

    Returns
    -------
    int
        The id of `<mol>`. Embeddings are widened where they have no row for it.
    """
    tokenizer.add_special_tokens(
        {"extra_special_tokens": [MOL_TOKEN]}, replace_extra_special_tokens=False
    )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    rows = cast("nn.Embedding", source.get_input_embeddings()).num_embeddings
    if len(tokenizer) > rows:
        source.resize_token_embeddings(len(tokenizer), mean_resizing=rows > 1)
    # Tokenizers cannot be relied on here: LLaMA-2's says 10³⁰, others less than their model reads.
    positions = getattr(source.config, "max_position_embeddings", None)
    if positions is not None:
        tokenizer.model_max_length = positions
    return cast("int", tokenizer.convert_tokens_to_ids(MOL_TOKEN))  # of one token, one id


def chat_template(tokenizer: PreTrainedTokenizerBase, preset: str | None, name: str) -> str | None:
    """Return the tokenizer's own chat template; `[INST]` for a LLaMA-2-chat that came without, and
    for "smollm2" ChatML without a system message."""
    if name == SMOLLM2:
        return CHATML_TEMPLATE
    llama2 = preset == "llama2-7b" or Path(name).name == Path(LLAMA2_7B).name
    if tokenizer.chat_template is None and llama2:
        return LLAMA2_CHAT_TEMPLATE
    return tokenizer.chat_template


def generation_config(
    source: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, mol_token_id: int
) -> GenerationConfig:
    """Take over the language model's settings; `<mol>` is an input, never an answer."""
    generation = source.generation_config
    generation.pad_token_id = tokenizer.pad_token_id
    generation.bos_token_id = tokenizer.bos_token_id
    if generation.eos_token_id is None:
        generation.eos_token_id = tokenizer.eos_token_id
    generation.suppress_tokens = [mol_token_id]
    return generation
