"""The embedded stand-in for a downloaded language model: a small LLaMA and its own tokenizer."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from collamo.model.configuration import MOL_TOKEN

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", MOL_TOKEN, "<user>", "<assistant>")

#: A role is one token, then the content: a string, or parts of which a molecule renders as
#: `<mol>`. Written out as "User:\n" and "Assistant:\n" the roles took 11 of the 24 tokens of a
#: question with its answer.
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
{{- '<' + message['role'] + '>' -}}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}{{- message['content'] + eos_token -}}{%- endgeneration -%}
{%- elif message['content'] is string -%}{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{{- '<mol>\n' if part['type'] == 'molecule' else part['text'] -}}
{%- endfor -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<assistant>' -}}{%- endif -%}
"""


def tiny_llama_config(vocab_size: int, **overrides) -> LlamaConfig:
    """Return a LLaMA of about half a million parameters.

    Our choice: width 128, 2 layers, 8 heads of 16, because it learns to look up an answer in its
    context in about a minute on two CPU cores, which wider and deeper ones did not; weights start
    at 0.1 ≈ 1/√128, because LLaMA's 0.02 leaves so narrow a model nearly silent; embeddings tied,
    because a thousand-token table twice would be a third of the model.

    Parameters
    ----------
    vocab_size
        Tokens of its tokenizer, as `train_tokenizer` makes it (ids 0, 1, 2 are pad, bos, eos).
    overrides
        Fields of `LlamaConfig` to set otherwise.
    """
    sizes = {
        "hidden_size": 128,
        "intermediate_size": 344,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "initializer_range": 0.1,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return LlamaConfig(vocab_size=vocab_size, **{**sizes, **overrides})


def train_tokenizer(texts: Iterable[str], vocab_size: int = 1024) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on `texts`.

    Any text round-trips, because every byte is a token. Digits are split one by one, so that a
    number is read and written digit by digit. The special tokens have ids 0 to 5;
    `<s>` is put in front unless ``add_special_tokens=False``.

    Parameters
    ----------
    texts
        What to learn merges from.
    vocab_size
        Upper limit of tokens; at least 262 (256 bytes and the special ones) are made.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"mol_token": MOL_TOKEN},
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        padding_side="right",
    )
