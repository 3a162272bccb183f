"""From text and molecules to everything the model takes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import ProcessorMixin

from collamo.chem.inputs import MoleculeInput, read_molecule
from collamo.data.batch import MODALITIES, REQUIRED_TENSORS
from collamo.errors import UsageError
from collamo.model.checksums import verify_checksums, write_checksums
from collamo.model.configuration import MOL_TOKEN, MoleculesAs
from collamo.model.feature_extractor import shortened
from collamo.model.inputs import ModelInputs
from collamo.model.stub import AUTO_MAP, OpenedByStub, write_stub
from collamo.model.text_options import TextOptions

# What marks an answer in a chat template.
GENERATION = re.compile(r"\{%-?\s*generation\b")


class CollamoProcessor(OpenedByStub, ProcessorMixin):
    """Text with `<mol>` placeholders and molecules to everything the model takes.

    Parameters
    ----------
    feature_extractor
        `MoleculeFeatureExtractor`.
    tokenizer
        Tokenizer that knows `mol_token` as one special token.
    num_query_tokens
        Soft tokens b per molecule, as in the model's projector; one `<mol>` expands to so many.
    mol_token
        The placeholder.
    chat_template
        Jinja template; None takes the tokenizer's.
    molecules_as
        What takes the place of `<mol>`: "soft_tokens", or "smiles", the molecule's SMILES as text
        and no molecule tensors: the baseline without a projector.

    Examples
    --------
    >>> inputs = processor(processor.prompt("Is it polar?"), ["CCO"])  # doctest: +SKIP
    """

    def __init__(
        self,
        feature_extractor=None,
        tokenizer=None,
        num_query_tokens: int = 32,
        mol_token: str = MOL_TOKEN,
        chat_template: str | None = None,
        molecules_as: MoleculesAs = "soft_tokens",
    ):
        self.num_query_tokens = num_query_tokens
        self.mol_token = mol_token
        self.molecules_as = molecules_as
        self.mol_token_id = tokenizer.convert_tokens_to_ids(mol_token)
        if self.mol_token_id is None or self.mol_token_id == tokenizer.unk_token_id:
            raise ValueError(
                f"the tokenizer does not know '{mol_token}'; add it as a special token, "
                "as collamo.build_model does"
            )
        chat_template = chat_template or tokenizer.chat_template
        super().__init__(feature_extractor, tokenizer, chat_template=chat_template)

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs) -> list[str]:
        """As the base class, with ``SHA256SUMS`` and the stub that ``trust_remote_code=True`` opens
        beside it."""
        os.makedirs(save_directory, exist_ok=True)
        write_stub(save_directory)
        self.auto_map = {"AutoProcessor": AUTO_MAP["AutoProcessor"]}
        written = super().save_pretrained(save_directory, push_to_hub, **kwargs)
        write_checksums(save_directory, weights=False)
        return written

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """Open as any processor; CollamoError where its files were altered on disk."""
        folder = Path(pretrained_model_name_or_path, kwargs.get("subfolder") or "")
        if folder.is_dir():
            verify_checksums(folder, weights=False)
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    def __call__(
        self,
        text: str | Sequence[str],
        molecules: MoleculeInput | Sequence | None = None,
        suffix: str | Sequence[str | Sequence[str]] | None = None,
        modalities: Sequence[str] = MODALITIES,
        padding: bool | str = True,
        return_tensors: str | None = "pt",
        padding_side: str | None = None,
        truncation: bool | str | None = False,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        add_special_tokens: bool = True,
        text_kwargs: Mapping[str, Any] | None = None,
        images: None = None,
        videos: None = None,
        audio: None = None,
    ) -> ModelInputs:
        """Prepare a batch.

        Parameters
        ----------
        text
            Prompt or prompts, with one `<mol>` per molecule.
        molecules
            One molecule per prompt, or a list of molecules per prompt: what `read_molecule` of
            `collamo.chem.inputs` reads (SMILES or SELFIES text, an RDKit Mol, `Molecule` or
            `MoleculeFeatures`). None for prompts without `<mol>`.
        suffix
            Answers. They are appended with the end-of-text token, and `labels` are returned: -100
            on prompt and padding. A dialogue about the same molecules is a list ``[answer, further
            prompt, answer, …]`` (see `further_prompt`); its further prompts have labels -100 too,
            and it ends after the last answer for which the language model has positions.
        modalities
            Which of "1d", "2d", "3d" the model gets to see.
        padding
            Pad to the longest prompt (True or "longest"), to `max_length` ("max_length") or not
            at all.
        return_tensors
            "pt", or None for lists of ids (molecules are tensors always).
        padding_side
            None pads left without `suffix`, as generation needs, and right with it.
        truncation
            Cut what is longer than `max_length` (None: than the language model has positions) at
            its end, answers too; never a molecule.
        max_length, pad_to_multiple_of
            Tokens, soft ones included.
        add_special_tokens
            Whether the tokenizer puts its special tokens before a prompt that has none; a rendered
            chat template brings its own.
        text_kwargs
            The arguments from `padding_side` on and `padding` once more, as transformers'
            processors take them; they go first.
        images, videos, audio
            None: the model has no such inputs.

        Returns
        -------
        ModelInputs
            input_ids, attention_mask (, labels) [R,T], and the molecule tensors [R,M,…].

        Raises
        ------
        ValueError
            If a prompt's `<mol>` and its molecules differ in number, or an answer has `<mol>`.
        UsageError
            If a prompt with its first answer has more tokens than the tokenizer's
            `model_max_length`, which `build_model` sets to the positions of the language model.
            Also for options of text that there are not or that contradict each other.
        MoleculeError
            For what is no molecule, with the number of its prompt.
        """
        _refuse_media(images=images, videos=videos, audio=audio)
        options = TextOptions.merged(
            text_kwargs,
            padding=padding,
            padding_side=padding_side,
            truncation=truncation,
            max_length=max_length,
            pad_to_multiple_of=pad_to_multiple_of,
            add_special_tokens=add_special_tokens,
        )
        texts = [text] if isinstance(text, str) else list(text)
        rows = _molecule_rows(molecules, len(texts), isinstance(text, str))
        for number, (prompt, row) in enumerate(zip(texts, rows, strict=True)):
            self._check_count(prompt, len(row), number)
        if self.molecules_as == "smiles":
            texts = list(map(self.written_out, texts, rows))
            rows = [[] for _ in rows]
        special = options.add_special_tokens
        pairs = zip(texts, rows, strict=True)
        ids = [self._prompt_ids(prompt, len(row), special) for prompt, row in pairs]
        answers = self._answers(suffix, ids)
        if options.cuts:
            ids, answers = self._cut(ids, answers, options.limit(self.tokenizer.model_max_length))
        joined = zip(texts, zip(ids, answers, strict=True), strict=True)
        for number, (prompt, (tokens, (answer, _))) in enumerate(joined):
            self._check_length(f"prompt {number} {shortened(prompt)}", len(tokens), len(answer))
        side = options.padding_side or ("left" if suffix is None else "right")
        lengths = [len(p) + len(a) for p, (a, _) in zip(ids, answers, strict=True)]
        length = options.length(lengths, self.tokenizer.model_max_length)
        data = self._padded(ids, answers, length, side)
        if suffix is None:
            del data["labels"]
        batch = ModelInputs(data, tensor_type=return_tensors)
        if any(rows):
            batch.update(self.feature_extractor(rows, modalities))
        return batch

    def prompt(self, question: str, num_molecules: int = 1) -> str:
        """Return the prompt for a question about `num_molecules` molecules.

        In the chat template's user turn, or ``<mol>\\nquestion\\n`` for a tokenizer without one.

        Raises
        ------
        ValueError
            If the question contains `<mol>`.
        """
        self._refuse_placeholder(question, "the question")
        parts = [{"type": "molecule"}] * num_molecules + [{"type": "text", "text": question}]
        if self.chat_template is None:
            return f"{self.mol_token}\n" * num_molecules + f"{question}\n"
        messages = [{"role": "user", "content": parts}]
        return self._render([messages], add_generation_prompt=True)[0]

    def check_question(self, question: str) -> None:
        """Refuse a question about one molecule that `prompt` or `__call__` would refuse.

        Raises
        ------
        ValueError
            If it contains `<mol>`, or (`UsageError`) is longer than the language model can read.
        """
        self._refuse_placeholder(question, "the question")
        molecules = 1 if self.molecules_as == "soft_tokens" else 0
        ids = self._prompt_ids(self.prompt(question, molecules), molecules)
        self._check_length(f"the question {shortened(question)}", len(ids), 0)

    def further_prompt(self, question: str) -> str:
        """Return the text between an answer and the next: a further question, same molecules.

        Raises
        ------
        ValueError
            If the question contains `<mol>`, or the chat template rewrites earlier turns.
        """
        self._refuse_placeholder(question, "the question")
        if self.chat_template is None:
            return f"{question}\n"
        answer = "the answer"
        turn = [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}]
        asked = [*turn, {"role": "user", "content": question}]
        before = self._render([turn])[0]
        whole = self._render([asked], add_generation_prompt=True)[0]
        if not whole.startswith(before):
            raise ValueError(
                "the chat template rewrites earlier turns when a dialogue goes on; ask one "
                "question per molecule (tasks.per_molecule: 1)"
            )
        # The end-of-text token belongs to the answer; what a template has after it, as ChatML has a
        # line break, to what follows.
        between = before.rpartition(answer)[2].partition(self.tokenizer.eos_token)[2]
        return between + whole[len(before) :]

    def apply_chat_template(  # type: ignore[override]  # the stub knows text alone, and no options
        self,
        conversation: Sequence,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        tokenize: bool = False,
        return_dict: bool = True,
        modalities: Sequence[str] = MODALITIES,
        processor_kwargs: dict | None = None,
        return_assistant_tokens_mask: bool = False,
        return_tensors: str | None = "pt",
        **kwargs,
    ) -> str | list[str] | ModelInputs | torch.Tensor:
        """Render conversations, and with `tokenize` also prepare their molecules.

        The public method is overridden, because the private hook for further inputs drops them
        without a word in transformers 5.17.

        Parameters
        ----------
        conversation
            Messages, or a list of conversations. Content is text or parts: ``{"type": "molecule",
            "smiles": …}`` (text, `Molecule` or `MoleculeFeatures`) and ``{"type": "text", "text":
            …}``.
        chat_template, add_generation_prompt, kwargs
            As for a tokenizer's `apply_chat_template`; further arguments reach the template.
        tokenize
            False returns text with `<mol>`; True what `__call__` returns.
        return_dict
            False with `tokenize` returns input_ids alone, for conversations without molecules.
        modalities, processor_kwargs, return_tensors
            Arguments of `__call__`.
        return_assistant_tokens_mask
            With `tokenize` also return ``assistant_masks`` [R,T], 1 at the tokens of answers, which
            the template must mark by ``{% generation %}``; 0 at soft tokens.

        Raises
        ------
        ValueError
            If text of a message contains `<mol>`, a part is of another kind, or a molecule has
            no "smiles".
        """
        single = bool(conversation) and isinstance(conversation[0], dict)
        conversations = [conversation] if single else list(conversation)
        for messages in conversations:
            self._check_messages(messages)
        texts = self._render(
            conversations,
            chat_template=chat_template,
            add_generation_prompt=add_generation_prompt,
            **kwargs,
        )
        if not tokenize:
            return texts[0] if single else texts
        rows = [[_molecule_of(part) for part in _molecule_parts(c)] for c in conversations]
        if any(rows) and not return_dict:
            raise ValueError(
                "return_dict=False would drop the molecules; take the dictionary and pass all of it"
            )
        molecules = rows if any(rows) else None
        options = {"return_tensors": return_tensors} | (processor_kwargs or {})
        batch = self(texts, molecules, modalities=modalities, **options)
        if return_assistant_tokens_mask:
            masks = self._assistant_masks(conversations, chat_template, batch, kwargs)
            as_tensor = options["return_tensors"] is not None
            batch["assistant_masks"] = torch.tensor(masks) if as_tensor else masks
        return batch if return_dict else batch["input_ids"]

    @property
    def model_input_names(self) -> list[str]:
        """Names of everything the model takes from here."""
        return ["input_ids", "attention_mask", *REQUIRED_TENSORS]

    def _render(self, conversations: Sequence, chat_template: str | None = None, **kwargs):
        """Render through the tokenizer; its template sees plain strings with `<mol>`."""
        plain = [[self.flat_message(m) for m in messages] for messages in conversations]
        template = chat_template or self.chat_template
        if template is None:
            raise ValueError("there is no chat template; pass chat_template or use prompt()")
        return self.tokenizer.apply_chat_template(
            plain, chat_template=template, tokenize=False, **kwargs
        )

    def flat_message(self, message: dict) -> dict:
        """Write parts as one string: any model's template takes that."""
        content = message["content"]
        if not isinstance(content, str):
            content = "".join(
                f"{self.mol_token}\n" if part["type"] == "molecule" else part["text"]
                for part in content
            )
        return {**message, "content": content}

    def _check_messages(self, messages: Sequence[dict]) -> None:
        for message in messages:
            content = message["content"]
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            for part in parts:
                if part.get("type") == "text":
                    self._refuse_placeholder(part["text"], f"a {message['role']} message")
                elif part.get("type") != "molecule":
                    raise ValueError(
                        f"message part of type {part.get('type')!r}; use 'text' or 'molecule'"
                    )

    def _refuse_placeholder(self, text: str, place: str) -> None:
        if self.mol_token in text:
            raise ValueError(
                f"{place} contains {self.mol_token}, the placeholder of molecules: "
                f"{shortened(text)}; take it out"
            )

    def _check_count(self, prompt: str, num_molecules: int, number: int) -> None:
        count = prompt.count(self.mol_token)
        if count != num_molecules:
            raise ValueError(
                f"prompt {number} {shortened(prompt)} has {count} {self.mol_token}, but "
                f"{num_molecules} molecules were given for it; use one {self.mol_token} per "
                "molecule"
            )

    def _check_length(self, what: str, prompt: int, answer: int) -> None:
        """Refuse more tokens than positions: past them a model fails, or answers with noise."""
        limit, count = self.tokenizer.model_max_length, prompt + answer
        if count + (not answer) > limit:  # a prompt alone needs room for a token of its answer
            included = "its molecule and answer" if answer else "its molecule"
            raise UsageError(
                f"{what} has {count} tokens, {included} included, but the language model has "
                f"{limit} positions; shorten it"
            )

    def written_out(self, prompt: str, molecules: Sequence[MoleculeInput]) -> str:
        """Return the prompt with a SMILES in the place of each `<mol>`."""
        before, *after = prompt.split(self.mol_token)
        smiles = [read_molecule(molecule).smiles for molecule in molecules]
        return before + "".join(map(str.__add__, smiles, after))

    def _prompt_ids(self, prompt: str, num_molecules: int, special: bool = True) -> list[int]:
        """Tokenize, each `<mol>` widened to b; a rendered template brings its own bos."""
        bos = self.tokenizer.bos_token
        special = special and not (bos and prompt.startswith(bos))
        ids = self.tokenizer(prompt, add_special_tokens=special, verbose=False)["input_ids"]
        if ids.count(self.mol_token_id) != num_molecules:
            raise ValueError(
                f"prompt {shortened(prompt)}: the tokenizer does not keep {self.mol_token} as one "
                "token; add it as a special token, as collamo.build_model does"
            )
        repeat = self.num_query_tokens
        return [i for id_ in ids for i in [id_] * (repeat if id_ == self.mol_token_id else 1)]

    def _assistant_masks(
        self, conversations: Sequence, template: str | None, batch: ModelInputs, kwargs: dict
    ) -> list[list[int]]:
        """1 at the tokens of answers, as the template's ``{% generation %}`` marks them; [R,T]."""
        template = template or str(self.chat_template or "")
        if self.molecules_as == "smiles" or not GENERATION.search(template):
            raise UsageError(
                "answers cannot be marked: that takes a chat template with {% generation %} around "
                "them, and molecules as soft tokens; pass suffix to get labels"
            )
        plain = [[self.flat_message(m) for m in messages] for messages in conversations]
        options = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
        encoded = self.tokenizer.apply_chat_template(
            plain, chat_template=template, **options, **kwargs
        )
        masks = []
        for number, ids in enumerate(encoded["input_ids"]):
            pairs = zip(ids, encoded["assistant_masks"][number], strict=True)
            repeat = self.num_query_tokens
            mask = [m for i, m in pairs for m in [m] * (repeat if i == self.mol_token_id else 1)]
            attended = [int(x) for x in batch["attention_mask"][number]]
            first, count = attended.index(1), sum(attended)
            # A template without a bos got one before it; a cut left out what is behind.
            begins = int(batch["input_ids"][number][first])
            before = [0] if begins == self.tokenizer.bos_token_id != ids[0] else []
            row = [*before, *mask][:count]
            masks.append([0] * first + row + [0] * (len(attended) - first - count))
        return masks

    def _answers(
        self, suffix: str | Sequence[str | Sequence[str]] | None, prompts: Sequence[list[int]]
    ) -> list[tuple[list[int], list[int]]]:
        """(Token ids, labels) of what follows each prompt; nothing without answers."""
        if suffix is None:
            return [([], []) for _ in prompts]
        answers = [suffix] if isinstance(suffix, str) else list(suffix)
        if len(answers) != len(prompts):
            raise ValueError(
                f"{len(answers)} answers for {len(prompts)} prompts; give one per prompt"
            )
        rooms = [self.tokenizer.model_max_length - len(prompt) for prompt in prompts]
        return self._dialogues([[a] if isinstance(a, str) else list(a) for a in answers], rooms)

    def _dialogues(
        self, rows: list[list[str]], rooms: list[int]
    ) -> list[tuple[list[int], list[int]]]:
        """[answer, further prompt, answer, …] → ids, and labels: -100 on the further prompts.

        Cut after the last answer that ends within the row's room, but not before the first: 20
        questions with a long caption among them pass 1,024 tokens in 2 of 800 PubChem molecules.
        """
        for segments in rows:
            for number, segment in enumerate(segments):
                self._refuse_placeholder(segment, "a further prompt" if number % 2 else "an answer")
        flat = [segment for segments in rows for segment in segments]
        # Not verbose: our own check of the length says what is too long.
        options = {"add_special_tokens": False, "verbose": False}
        tokens = iter(self.tokenizer(flat, **options)["input_ids"] if flat else [])
        dialogues = []
        for segments, room in zip(rows, rooms, strict=True):
            ids: list[int] = []
            labels: list[int] = []
            end = 0
            for number in range(len(segments)):
                segment, answered = next(tokens), number % 2 == 0
                segment = segment + [self.tokenizer.eos_token_id] * answered
                ids += segment
                labels += segment if answered else [-100] * len(segment)
                if answered and (number == 0 or len(ids) <= room):
                    end = len(ids)
            dialogues.append((ids[:end], labels[:end]))
        return dialogues

    def _cut(
        self,
        prompts: Sequence[list[int]],
        answers: Sequence[tuple[list[int], list[int]]],
        limit: int,
    ) -> tuple[list[list[int]], list[tuple[list[int], list[int]]]]:
        """Leave out what stands behind `limit` tokens, where that is no molecule."""
        for number, prompt in enumerate(prompts):
            if self.mol_token_id in prompt[limit:]:
                last = len(prompt) - prompt[::-1].index(self.mol_token_id)
                raise UsageError(
                    f"prompt {number} has a molecule up to token {last}; truncation to max_length "
                    f"{limit} would cut it: pass at least {last}"
                )
        rooms = [max(0, limit - len(prompt)) for prompt in prompts]
        pairs = zip(answers, rooms, strict=True)
        return (
            [prompt[:limit] for prompt in prompts],
            [(ids[:room], labels[:room]) for (ids, labels), room in pairs],
        )

    def _padded(self, prompts, answers, length: int, side: str) -> dict[str, list[list[int]]]:
        """Join prompt and answer, pad on one side, -100 labels everywhere but on the answer."""
        if side not in ("left", "right"):
            raise ValueError(f"padding_side {side!r}; use 'left' or 'right'")
        rows = [(p, *answer) for p, answer in zip(prompts, answers, strict=True)]
        token = self.tokenizer.pad_token_id
        token = self.tokenizer.eos_token_id if token is None else token
        data: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
        for prompt, answer, labels in rows:
            ids = prompt + answer
            gap = max(0, length - len(ids))
            for key, values, fill in (
                ("input_ids", ids, token),
                ("attention_mask", [1] * len(ids), 0),
                ("labels", [-100] * len(prompt) + labels, -100),
            ):
                padding = [fill] * gap
                data[key].append(padding + values if side == "left" else values + padding)
        return data


def _refuse_media(**media: object) -> None:
    for name, value in media.items():
        if value is not None:
            raise UsageError(
                f"{name} is given, but the model reads text and molecules; leave it out"
            )


def _molecule_rows(molecules, count: int, single: bool) -> list[list[MoleculeInput]]:
    """Sort molecules into one list per prompt."""
    if molecules is None:
        return [[] for _ in range(count)]
    molecules = list(molecules) if _is_list(molecules) else [molecules]
    nested = [_is_list(molecule) for molecule in molecules]
    if any(nested) and not all(nested):
        raise ValueError("molecules mixes single molecules and lists; use lists for all prompts")
    if single and not any(nested):
        return [molecules]
    if len(molecules) != count:
        raise ValueError(
            f"{len(molecules)} entries of molecules for {count} prompts; give one per prompt, "
            "or a list of molecules for each"
        )
    return [list(entry) if nested[0] else [entry] for entry in molecules]


def _is_list(value: object) -> bool:
    """Return whether this is several molecules; None and NaN stand for one that is missing."""
    return isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping)


def _molecule_parts(messages: Sequence[dict]) -> list[dict]:
    contents = [m["content"] for m in messages if not isinstance(m["content"], str)]
    return [part for content in contents for part in content if part["type"] == "molecule"]


def _molecule_of(part: dict) -> MoleculeInput:
    if part.get("smiles") is None:
        raise ValueError('a molecule part has no "smiles"; write {"type": "molecule", "smiles": …}')
    return part["smiles"]
