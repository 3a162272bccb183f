"""The engine for a laptop: transformers' `generate` over whatever waits, in a thread of its own.

transformers' continuous batching takes token ids alone, no embeddings. Here a batch ends early when
somebody waits and there is room, and what has not ended goes on in the next one from its prompt and
its own tokens: reading those again takes about as long as a few steps, and any cache will do.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Sequence

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TopPLogitsWarper,
)

from collamo.errors import CollamoError
from collamo.inference.answers import evaluation_mode
from collamo.inference.assistant import Assistant
from collamo.inference.serve.answer_text import AnswerText
from collamo.inference.serve.engine import Piece, Prompt, Sampling

logger = logging.getLogger(__name__)
#: Our choice: tokens that a batch makes at least before it ends for those who wait; reading 8
#: prompts of 100 tokens again takes as long as two or three of them.
SLICE = 8


class _Answer:
    """An answer that is being made; the engine's thread fills it, the event loop reads `pieces`."""

    def __init__(self, prompt: Prompt, sampling: Sampling, text: AnswerText):
        self.prompt = prompt
        self.sampling = sampling
        self.text = text
        self.embeds: Tensor | None = None  # [T,D] of the prompt, once it was in a batch
        self.cancelled = self.done = False
        self.pieces: asyncio.Queue[Piece | Exception] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._generator = torch.Generator()
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)

    def left(self, positions: int) -> int:
        """Tokens that it may still get."""
        room = min(self.sampling.max_tokens, positions - len(self.prompt.ids))
        return room - len(self.text.ids)

    def choose(self, logits: Tensor) -> int | None:
        """Draw a token from the logits ``[V]``; None leaves the choice to the largest."""
        if not self.sampling.temperature:
            return None
        scores = logits.float().cpu()[None] / self.sampling.temperature
        if self.sampling.top_p < 1:
            scores = TopPLogitsWarper(self.sampling.top_p)(torch.empty(1, 0), scores)
        return int(torch.multinomial(scores.softmax(-1)[0], 1, generator=self._generator))

    def take(self, token: int, eos: int, positions: int) -> None:
        """Take the next token and send what it adds to the text."""
        finish = None
        if token == eos:
            piece, finish = self.text.end(), "stop"
        else:
            piece = self.text.add(token)
            if self.text.stopped:
                finish = "stop"
            elif not self.left(positions):
                piece, finish = piece + self.text.end(), "length"
        if piece or finish:
            self.done = finish is not None
            self._send(Piece(piece, len(self.text.ids), finish))

    def fail(self, error: Exception) -> None:
        """End with an error."""
        self.done = True
        self._send(error)

    def _send(self, piece: Piece | Exception) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.pieces.put_nowait, piece)


class TransformersEngine:
    """Answers in batches, by transformers' ``generate``.

    Parameters
    ----------
    assistant
        The model.
    batch_size
        Answers made together.
    """

    def __init__(self, assistant: Assistant, batch_size: int = 8):
        self.assistant = assistant
        self.batch_size = batch_size
        # One of its own: a fast tokenizer may not be used by two threads at once.
        self._tokenizer = copy.deepcopy(assistant.processor.tokenizer)
        self._waiting: deque[_Answer] = deque()
        self._going_on: list[_Answer] = []
        self._changed = threading.Condition()
        self.closed = False
        self._thread = threading.Thread(target=self._run, name="collamo-engine", daemon=True)
        self._thread.start()

    async def stream(self, prompt: Prompt, sampling: Sampling) -> AsyncIterator[Piece]:
        """Yield the pieces of an answer; see `Engine`."""
        answer = _Answer(prompt, sampling, AnswerText(self._decode, sampling.stop))
        with self._changed:
            if self.closed:
                raise CollamoError("the server is stopping")
            self._waiting.append(answer)
            self._changed.notify()
        try:
            while True:
                piece = await answer.pieces.get()
                if isinstance(piece, Exception):
                    raise piece
                yield piece
                if piece.finish is not None:
                    return
        finally:
            answer.cancelled = True

    def close(self) -> None:
        """End the thread after the token that is being made; what waits fails."""
        with self._changed:
            self.closed = True
            self._changed.notify()
        self._thread.join()

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def _run(self) -> None:
        while self._fill():
            batch = [answer for answer in self._going_on if not answer.cancelled]
            self._make(batch)
            self._going_on = [answer for answer in batch if not answer.done]
        for answer in (*self._going_on, *self._waiting):
            answer.fail(CollamoError("the server is stopping"))

    def _fill(self) -> bool:
        """Wait for work and let new answers join; False once it is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self.closed or self._going_on or self._waiting)
            while self._waiting and len(self._going_on) < self.batch_size:
                self._going_on.append(self._waiting.popleft())
            return not self.closed

    def _make(self, batch: list[_Answer]) -> None:
        """Go on with a batch; where it fails, with each by itself, so that one fails alone."""
        if not batch:
            return
        try:
            self._generate(batch)
        except Exception as error:
            if len(batch) > 1:
                logger.warning("a batch failed, its answers are made one by one: %s", error)
                for answer in batch:
                    self._make([answer] if not answer.done else [])
                return
            logger.exception("an answer failed")
            batch[0].fail(error)

    @torch.inference_mode()
    def _generate(self, batch: list[_Answer]) -> None:
        model, tokenizer = self.assistant.model, self._tokenizer
        self._embed([answer for answer in batch if answer.embeds is None])
        embeds, mask = self._padded(batch)
        watch = _Watch(self, batch)
        with evaluation_mode(model):
            model.generate(
                inputs_embeds=embeds,
                attention_mask=mask,
                max_new_tokens=max(answer.left(self.positions) for answer in batch),
                do_sample=False,  # draws are made in _Chosen, a row's own
                num_beams=1,
                logits_processor=LogitsProcessorList([_Chosen(batch)]),
                stopping_criteria=StoppingCriteriaList([watch]),
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )

    @property
    def positions(self) -> int:
        """Tokens that the language model can read."""
        return int(self._tokenizer.model_max_length)

    def _embed(self, answers: Sequence[_Answer]) -> None:
        """Encode the molecules of new answers, those who may see the same views together."""
        for views in {answer.prompt.modalities for answer in answers}:
            alike = [answer for answer in answers if answer.prompt.modalities == views]
            features = [each for answer in alike for each in answer.prompt.features]
            soft = self.assistant.soft_tokens(features, modalities=views) if features else None
            start = 0
            for answer in alike:
                end = start + len(answer.prompt.features)
                own = None if soft is None or end == start else soft[start:end]
                answer.embeds = self.assistant.spliced(torch.tensor(answer.prompt.ids), own)
                start = end

    def _padded(self, batch: Sequence[_Answer]) -> tuple[Tensor, Tensor]:
        """Return embeddings [B,T,D], padded on the left, and which are real [B,T]."""
        rows = []
        for answer in batch:
            assert answer.embeds is not None
            said = self.assistant.spliced(torch.tensor(answer.text.ids, dtype=torch.long), None)
            rows.append(torch.cat([answer.embeds, said]))
        length = max(map(len, rows))
        embeds = rows[0].new_zeros(len(rows), length, rows[0].shape[1])
        mask = torch.zeros(len(rows), length, dtype=torch.long, device=embeds.device)
        for number, row in enumerate(rows):
            embeds[number, length - len(row) :] = row
            mask[number, length - len(row) :] = 1
        return embeds, mask

    def somebody_waits(self) -> bool:
        """Whether an answer has not been begun."""
        return bool(self._waiting)


class _Chosen(LogitsProcessor):
    """Make a row's own draw the only token it can take; a row without numbers fails alone."""

    def __init__(self, batch: Sequence[_Answer]):
        self.batch = batch

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        finite = scores.max(-1).values.isfinite()
        for row, answer in enumerate(self.batch):
            if answer.done:
                continue
            if not finite[row]:
                answer.fail(CollamoError("the model's numbers are NaN or infinite"))
                continue
            token = answer.choose(scores[row])
            if token is not None:
                scores[row] = -torch.inf
                scores[row, token] = 0.0
        return torch.where(finite[:, None], scores, 0.0)


class _Watch(StoppingCriteria):
    """Hand each token to its answer; end rows that are done, and the batch for those who wait."""

    def __init__(self, engine: TransformersEngine, batch: Sequence[_Answer]):
        self.engine = engine
        self.batch = batch
        self.steps = 0

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs) -> Tensor:
        eos, positions = self.engine._tokenizer.eos_token_id, self.engine.positions
        tokens = input_ids[:, -1].tolist()
        for answer, token in zip(self.batch, tokens, strict=True):
            if not (answer.done or answer.cancelled):
                answer.take(token, eos, positions)
        self.steps += 1
        over = [answer.done or answer.cancelled for answer in self.batch]
        room = len(self.batch) < self.engine.batch_size or any(over)
        if self.engine.closed or (self.steps >= SLICE and room and self.engine.somebody_waits()):
            over = [True] * len(over)
        return torch.tensor(over, device=input_ids.device)
