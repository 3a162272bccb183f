"""How vLLM reads prompts and messages that have molecules."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from vllm.renderers.hf import HfRenderer, safe_apply_chat_template
from vllm.renderers.inputs import DictPrompt, TokPrompt
from vllm.renderers.params import ChatParams, TokenizeParams

from collamo.errors import UsageError
from collamo.inference.conversation import (
    MoleculeText,
    prompt_of,
    read_conversation,
    split_text,
)
from collamo.inference.vllm_plugin.molecules import MODALITY, read
from collamo.model import CollamoProcessor


class PromptReader(HfRenderer):
    """Takes molecules as `collamo serve` does: parts of a message, tags in a text.

    A part is ``{"type": "molecule", "smiles": "CCO"}``, a tag ``<mol smiles="CCO"/>``. A prompt
    may have ``multi_modal_data={"molecule": […]}`` instead, and a bare `<mol>` for each. One
    without its molecule is refused: the language model would tell of a molecule all the same.
    """

    @property
    def processor(self) -> CollamoProcessor:
        """The checkpoint's own."""
        return self.get_mm_processor().info.processor

    @property
    def _writes_out(self) -> bool:
        """Whether the model reads molecules as text."""
        return self.processor.molecules_as == "smiles"

    def render_messages(
        self, messages: Sequence[Mapping[str, Any]], params: ChatParams
    ) -> tuple[list[Any], DictPrompt]:
        """Return the messages as texts with `<mol>`, and their prompt.

        In tokens, because the processor's rule is that of training: `<s>` in front where the
        template wrote none. vLLM puts none before a chat.
        """
        # vLLM's own request has contents that can be gone through once.
        listed = [{**message, "content": _listed(message.get("content"))} for message in messages]
        conversation = read_conversation(listed)
        texts = [self.processor.flat_message(message) for message in conversation.messages]
        tokenizer = self.get_tokenizer()
        if params.chat_template is None and self.processor.chat_template is None:
            text = prompt_of(self.processor, conversation.messages)
        else:
            options = {**params.get_apply_chat_template_kwargs(), "tokenize": False}
            text = safe_apply_chat_template(self.model_config, tokenizer, texts, **options)
        prompt = self._with_molecules({"prompt": text}, conversation.molecules)
        special = not self._has_start(text)
        ids = tokenizer(prompt["prompt"], add_special_tokens=special, verbose=False)["input_ids"]
        return texts, {**prompt, "prompt_token_ids": ids}

    async def render_messages_async(
        self, messages: Sequence[Mapping[str, Any]], params: ChatParams
    ) -> tuple[list[Any], DictPrompt]:
        """As `render_messages`."""
        return await asyncio.to_thread(self.render_messages, messages, params)

    def render_prompts(self, prompts: Sequence[DictPrompt | bytes]) -> list[DictPrompt]:
        """Take the tags of molecules out of prompts."""
        return [self._untagged(prompt) for prompt in super().render_prompts(prompts)]

    async def render_prompts_async(self, prompts: Sequence[DictPrompt | bytes]) -> list[DictPrompt]:
        """As `render_prompts`."""
        return [self._untagged(p) for p in await super().render_prompts_async(prompts)]

    def tokenize_prompt(self, prompt: DictPrompt, params: TokenizeParams) -> TokPrompt:
        """Tokenize, with one `<s>`, and hold that each molecule has its `<mol>`."""
        return self._checked(super().tokenize_prompt(prompt, self._one_start(prompt, params)))

    async def tokenize_prompt_async(self, prompt: DictPrompt, params: TokenizeParams) -> TokPrompt:
        """As `tokenize_prompt`."""
        params = self._one_start(prompt, params)
        return self._checked(await super().tokenize_prompt_async(prompt, params))

    def _untagged(self, prompt: DictPrompt) -> DictPrompt:
        """Return a prompt whose tags are `<mol>`, and molecules among its data."""
        text, data = prompt.get("prompt"), prompt.get("multi_modal_data") or {}
        if "prompt_token_ids" in prompt or not isinstance(text, str):
            return prompt
        mol, given = self.processor.mol_token, _given(data)
        if given:
            if tags := [tag for piece in text.split(mol) for tag in _tags(piece)]:
                raise UsageError(
                    f"the prompt has a tag for {tags[0].text!r:.80} and multi_modal_data beside "
                    f"it; write {mol} in its place, or leave multi_modal_data out"
                )
            return self._with_molecules(prompt, given)
        pieces = split_text(text, "the prompt")
        untagged = "".join(mol if isinstance(p, MoleculeText) else p for p in pieces)
        return self._with_molecules({**prompt, "prompt": untagged}, _tags(text))

    def _with_molecules(self, prompt: DictPrompt, molecules: Sequence[Any]) -> DictPrompt:
        """Return a text prompt with its molecules as data, or written into the text.

        The latter where the model reads SMILES; without data where there are no molecules.
        """
        rest = {name: value for name, value in prompt.items() if name != "multi_modal_data"}
        if not molecules:
            return rest
        self._check_count(prompt["prompt"].count(self.processor.mol_token), len(molecules))
        if not self._writes_out:
            return {**rest, "multi_modal_data": {MODALITY: list(molecules)}}
        return {**rest, "prompt": self.processor.written_out(prompt["prompt"], read(molecules))}

    def _one_start(self, prompt: DictPrompt, params: TokenizeParams) -> TokenizeParams:
        """Return the parameters, by which no second `<s>` comes before the prompt's own."""
        if self._has_start(prompt.get("prompt")):
            return replace(params, add_special_tokens=False)
        return params

    def _has_start(self, text: Any) -> bool:
        start = self.get_tokenizer().bos_token
        return bool(start) and isinstance(text, str) and text.startswith(start)

    def _checked(self, prompt: TokPrompt) -> TokPrompt:
        """Refuse another number of `<mol>` than of molecules."""
        if "prompt_token_ids" in prompt:
            given = _given(prompt.get("multi_modal_data") or {})
            if given and self._writes_out:
                raise UsageError("this model reads molecules as text; give the prompt as text too")
            places = list(prompt["prompt_token_ids"]).count(self.processor.mol_token_id)
            self._check_count(places, len(given))
        return prompt

    def _check_count(self, places: int, given: int) -> None:
        if places != given:
            mol = self.processor.mol_token
            raise UsageError(
                f"the prompt has {places} {mol}, but {given} molecules were given for it; use one "
                f"{mol} per molecule"
            )


def _tags(text: str) -> list[MoleculeText]:
    return [piece for piece in split_text(text, "the prompt") if isinstance(piece, MoleculeText)]


def _given(data: Mapping[str, Any]) -> Sequence[Any]:
    """Return the molecules that a prompt's data have; UsageError where they have other things."""
    if others := sorted(map(str, data.keys() - {MODALITY})):
        raise UsageError(
            f"multi_modal_data has {others[0]!r:.40}; this model reads {MODALITY!r} alone"
        )
    molecules = data.get(MODALITY, [])
    return molecules if isinstance(molecules, list | tuple) else [molecules]


def _listed(content: Any) -> Any:
    return content if content is None or isinstance(content, str) else list(content)
