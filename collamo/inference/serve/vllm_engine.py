"""The engine for a GPU: vLLM, which opens the whole model by its plugin."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import torch

from collamo.inference.serve.answer_text import AnswerText
from collamo.inference.serve.engine import Piece, Prompt, Sampling
from collamo.model import CollamoConfig, CollamoProcessor


class VllmEngine:
    """Answers by vLLM's scheduler, in processes of its own.

    Parameters
    ----------
    folder
        Of a whole model, its LoRA merged.
    processor
        Of the model.
    batch_size
        Answers made together.
    dtype
        Of the weights; None keeps the one they were saved in.
    """

    def __init__(
        self,
        folder: Path,
        processor: CollamoProcessor,
        batch_size: int = 8,
        dtype: str | None = None,
    ):
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        self._processor = processor
        self._tokenizer = processor.tokenizer
        saved = CollamoConfig.from_pretrained(folder).dtype
        self._llm = AsyncLLM.from_engine_args(
            AsyncEngineArgs(
                model=str(folder),
                dtype=dtype or str(saved).removeprefix("torch."),  # "auto" narrows float32
                max_model_len=self.positions,
                max_num_seqs=batch_size,
                enforce_eager=not torch.cuda.is_available(),  # compiling takes minutes on a CPU
                disable_log_stats=True,
            )
        )

    async def stream(self, prompt: Prompt, sampling: Sampling) -> AsyncIterator[Piece]:
        """Yield the pieces of an answer; see `Engine`."""
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        room = self.positions - len(prompt.ids)
        parameters = SamplingParams(
            max_tokens=min(sampling.max_tokens, room),
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=sampling.seed,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        (inputs,) = await self._llm.renderer.render_cmpl_async([self._inputs(prompt)])
        outputs = self._llm.generate(inputs, parameters, uuid.uuid4().hex)
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

    def _inputs(self, prompt: Prompt) -> dict[str, Any]:
        """Return the prompt as vLLM takes it: with one `<mol>` a molecule, which it widens."""
        mol = self._processor.mol_token_id
        places = [place for place, token in enumerate(prompt.ids) if token == mol]
        widened = set(places) - set(places[:: self._processor.num_query_tokens])
        ids = [token for place, token in enumerate(prompt.ids) if place not in widened]
        if not prompt.features:
            return {"prompt_token_ids": ids}
        return {
            "prompt_token_ids": ids,
            "multi_modal_data": {"molecule": list(prompt.features)},
            "mm_processor_kwargs": {"modalities": list(prompt.modalities)},
        }

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)
