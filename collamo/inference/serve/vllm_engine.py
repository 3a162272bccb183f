"""The engine for a GPU: vLLM has the language model, and goes on from embeddings made here."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from collamo.inference.prompt_encoder import PromptEncoder
from collamo.inference.serve.answer_text import AnswerText
from collamo.inference.serve.engine import Piece, Prompt, Sampling


class VllmEngine:
    """Answers by vLLM's scheduler, a process of its own.

    It alone may send embeddings there: what clients send are molecules and text.

    Parameters
    ----------
    encoder
        Makes the embeddings; its language model is not needed.
    language_model
        Folder that `collamo merge --language-model` wrote.
    batch_size
        Answers made together.
    """

    def __init__(self, encoder: PromptEncoder, language_model: Path, batch_size: int = 8):
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        self.encoder = encoder
        self._tokenizer = encoder.processor.tokenizer
        self._encoding = asyncio.Lock()  # one at a time: its train/eval mode is switched for each
        self._llm = AsyncLLM.from_engine_args(
            AsyncEngineArgs(
                model=str(language_model),
                enable_prompt_embeds=True,
                dtype=str(encoder.model.dtype).removeprefix("torch."),  # "auto" narrows float32
                max_model_len=self.positions,
                max_num_seqs=batch_size,
                enforce_eager=not torch.cuda.is_available(),  # compiling takes minutes on a CPU
                disable_log_stats=True,
            )
        )

    async def stream(self, prompt: Prompt, sampling: Sampling) -> AsyncIterator[Piece]:
        """Yield the pieces of an answer; see `Engine`."""
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        async with self._encoding:
            embeds = await asyncio.to_thread(self._embeds, prompt)
        room = self.positions - len(prompt.ids)
        parameters = SamplingParams(
            max_tokens=min(sampling.max_tokens, room),
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=sampling.seed,
            # An input, never an answer; vLLM does not read suppress_tokens.
            logit_bias={self.encoder.processor.mol_token_id: -100.0},
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        outputs = self._llm.generate({"prompt_embeds": embeds}, parameters, uuid.uuid4().hex)
        text = AnswerText(self._decode, sampling.stop)
        async with contextlib.aclosing(outputs):  # which ends the work on it
            async for output in outputs:
                for piece in self._pieces(text, output.outputs[0]):
                    yield piece
                    if piece.finish is not None:
                        return

    @property
    def positions(self) -> int:
        """Tokens that the language model can read."""
        return int(self._tokenizer.model_max_length)

    def close(self) -> None:
        """End vLLM's process."""
        self._llm.shutdown()

    def _pieces(self, text: AnswerText, completion) -> list[Piece]:
        """Return what vLLM's further tokens add to the text."""
        said, finish = "", completion.finish_reason
        for token in completion.token_ids:
            if token != self._tokenizer.eos_token_id:
                said += text.add(token)
            if text.stopped:
                finish = "stop"
                break
        if finish is not None:
            said += text.end()
        return [Piece(said, len(text.ids), finish)] if said or finish else []

    def _embeds(self, prompt: Prompt) -> Tensor:
        features = prompt.features
        soft = None
        if features:
            soft = self.encoder.soft_tokens(features, modalities=prompt.modalities)
        return self.encoder.spliced(torch.tensor(prompt.ids), soft).cpu()

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)
