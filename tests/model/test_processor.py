import math

import numpy as np
import pytest
import torch
from model_helpers import build
from rdkit import Chem

from collamo.chem.molecule import parse_molecule
from collamo.errors import MoleculeError, UsageError
from collamo.model import CollamoProcessor, MoleculeFeatureExtractor

B = 3  # soft tokens per molecule of the test model
NO_3D = ("1d", "2d")


def mol_count(processor, batch):
    return (batch["input_ids"] == processor.mol_token_id).sum(1).tolist()


# --- placeholders ------------------------------------------------------------------------------


def test_each_placeholder_widens(processor):
    batch = processor(["<mol> a", "<mol> b <mol>"], [["C"], ["C", "CC"]], modalities=NO_3D)
    assert mol_count(processor, batch) == [B, 2 * B]
    assert batch["molecule_valid"].tolist() == [[True, False], [True, True]]


@pytest.mark.parametrize(
    ("text", "molecules", "found"),
    [
        ("no placeholder", ["C"], "has 0 <mol>, but 1"),
        ("<mol>", None, "has 1 <mol>, but 0"),
        ("<mol> and <mol>", ["C"], "has 2 <mol>, but 1"),
        (["<mol>", "<mol><mol>"], ["C", "C"], "prompt 1 '<mol><mol>' has 2 <mol>, but 1"),
        (["<mol>", "<mol>"], [["C", "C"], []], "prompt 0 '<mol>' has 1 <mol>, but 2"),
    ],
)
def test_count_mismatch_names_the_prompt(processor, text, molecules, found):
    with pytest.raises(ValueError, match=found):
        processor(text, molecules, modalities=NO_3D)


def test_user_text_cannot_smuggle_a_placeholder(processor):
    with pytest.raises(ValueError, match="the question contains <mol>"):
        processor.prompt("What is <mol>?")
    with pytest.raises(ValueError, match="an answer contains <mol>"):
        processor("<mol>", ["C"], suffix="<mol>", modalities=NO_3D)
    for content in ("<mol>", [{"type": "text", "text": "<mol>"}]):
        messages = [{"role": "user", "content": content}]
        with pytest.raises(ValueError, match="a user message contains <mol>"):
            processor.apply_chat_template(messages)


@pytest.mark.parametrize(
    ("molecules", "complaint"),
    [(["C"], "1 entries of molecules for 2 prompts"), (["C", ["C"]], "mixes")],
)
def test_molecules_must_match_the_prompts(processor, molecules, complaint):
    with pytest.raises(ValueError, match=complaint):
        processor(["<mol>", "<mol>"], molecules, modalities=NO_3D)


def test_text_alone_has_no_molecule_tensors(processor):
    assert set(processor(["hello", "you"])) == {"input_ids", "attention_mask"}


def test_smiles_as_text_take_the_place_of_soft_tokens(processor, features):
    kept = processor.molecules_as
    try:
        processor.molecules_as = "smiles"
        prompt = processor.prompt("What is its weight?")
        batch = processor([prompt] * 3, ["CCO", Chem.MolFromSmiles("CC"), features["C"]])
        texts = processor.tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)
        processor.check_question("What?")
        with pytest.raises(MoleculeError, match="no_molecule"):
            processor(prompt, ["no_molecule"])
    finally:
        processor.molecules_as = kept
    assert set(batch) == {"input_ids", "attention_mask"}
    assert [text.split("\n")[0] for text in texts] == ["CCO", "CC", "C"]


# --- answers and padding -------------------------------------------------------------------------


def test_suffix_becomes_labels(processor):
    tokenizer = processor.tokenizer
    prompts = [processor.prompt("What?"), processor.prompt("What is its weight?")]
    batch = processor(prompts, ["C", "C"], suffix=["-3", "12.5"], modalities=NO_3D)
    for row, answer in enumerate(["-3", "12.5"]):
        labels = batch["labels"][row]
        scored = labels[labels != -100]
        assert tokenizer.decode(scored) == answer + tokenizer.eos_token
        assert torch.equal(batch["input_ids"][row][labels != -100], scored)
    assert batch["attention_mask"][0, 0] == 1  # padded on the right
    assert batch["attention_mask"][0, -1] == 0
    assert (batch["labels"][batch["attention_mask"] == 0] == -100).all()


def test_a_dialogue_scores_every_answer_and_no_question(processor):
    tokenizer, eos = processor.tokenizer, processor.tokenizer.eos_token
    suffix = ["-3", processor.further_prompt("And its weight?"), "12.5"]
    batch = processor([processor.prompt("What?")], ["C"], suffix=[suffix], modalities=NO_3D)
    labels, ids = batch["labels"][0], batch["input_ids"][0]
    assert tokenizer.decode(labels[labels != -100]) == f"-3{eos}12.5{eos}"
    assert torch.equal(ids[labels != -100], labels[labels != -100])
    chat = [
        {"role": "user", "content": [{"type": "molecule"}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "-3"},
        {"role": "user", "content": "And its weight?"},
        {"role": "assistant", "content": "12.5"},
    ]
    soft = processor.mol_token * processor.num_query_tokens
    rendered = processor.apply_chat_template(chat).replace(processor.mol_token, soft)
    assert tokenizer.decode(ids) == rendered


def test_a_further_prompt_refuses_a_placeholder_and_a_template_that_rewrites(processor):
    with pytest.raises(ValueError, match="the question contains <mol>"):
        processor.further_prompt("and <mol>?")
    kept = processor.chat_template
    try:
        processor.chat_template = "{{ messages | length }}{{ messages[-1]['content'] }}"
        with pytest.raises(ValueError, match="per_molecule: 1"):
            processor.further_prompt("more?")
    finally:
        processor.chat_template = kept


def test_prompt_ids_are_the_same_with_and_without_an_answer(processor):
    prompt = processor.prompt("What is its weight?")
    without = processor(prompt, ["C"], modalities=NO_3D)["input_ids"][0]
    with_answer = processor(prompt, ["C"], suffix="12.5", modalities=NO_3D)["input_ids"][0]
    assert torch.equal(with_answer[: len(without)], without)


def test_what_is_longer_than_the_positions_is_refused(tokenizer, tmp_path, capfd):
    _, processor = build(tokenizer, max_position_embeddings=24)
    processor.save_pretrained(tmp_path)
    processor = CollamoProcessor.from_pretrained(tmp_path)  # as evaluation opens it
    empty = processor("<mol>", ["C"], modalities=NO_3D)["input_ids"].shape[1]
    fits = "<mol>" + "~" * (23 - empty)  # the last position is the answer's first token
    assert processor(fits, ["C"], modalities=NO_3D)["input_ids"].shape[1] == 23
    processor(fits, ["C"], suffix="", modalities=NO_3D)  # nothing but the end of the text
    with pytest.raises(UsageError, match=r"prompt 1 '<mol>~+' has 24 tokens, .* has 24 positions"):
        processor([fits, f"{fits}~"], ["C", "C"], modalities=NO_3D)
    with pytest.raises(UsageError, match=r"has 25 tokens, its molecule and answer included"):
        processor(fits, ["C"], suffix="~", modalities=NO_3D)
    processor.check_question("~")
    with pytest.raises(UsageError, match=r"the question '~+…' has 9\d\d\d tokens"):
        processor.check_question("~" * 9000)
    with pytest.raises(ValueError, match="the question contains <mol>"):
        processor.check_question("<mol>")
    assert capfd.readouterr().err == ""  # no warning of the tokenizer's before our line


def test_a_dialogue_ends_with_the_last_answer_that_fits(tokenizer):
    _, processor = build(tokenizer)
    prompt = processor("<mol>", ["C"], modalities=NO_3D)["input_ids"].shape[1]
    dialogue = ["~", "?", "~~~~", "?", "", "?", "~"]  # ends after 2, 8, 10 and 13 tokens

    def scored(room):
        processor.tokenizer.model_max_length = prompt + room
        labels = processor(["<mol>"], ["C"], suffix=[dialogue], modalities=NO_3D)["labels"][0]
        return processor.tokenizer.decode(labels[labels != -100])

    assert scored(7) == "~</s>"
    assert scored(8) == scored(9) == "~</s>~~~~</s>"
    assert scored(10) == "~</s>~~~~</s></s>"
    assert scored(13) == "~</s>~~~~</s></s>~</s>"


def test_padding_sides_and_lists(processor):
    texts = ["<mol> a", "<mol> a b c"]
    left = processor(texts, ["C", "C"], modalities=NO_3D)
    assert left["attention_mask"][0, 0] == 0
    assert left["attention_mask"][0, -1] == 1
    right = processor(texts, ["C", "C"], modalities=NO_3D, padding_side="right")
    assert right["attention_mask"][0, 0] == 1
    ragged = processor(texts, ["C", "C"], modalities=NO_3D, padding=False, return_tensors=None)
    assert len(ragged["input_ids"][0]) < len(ragged["input_ids"][1])
    with pytest.raises(ValueError, match="padding_side"):
        processor(texts, ["C", "C"], modalities=NO_3D, padding_side="up")


class TestTextOptions:
    TEXTS, MOLECULES = ("<mol> a", "<mol> b c d"), ("C", "CC")

    def lengths(self, processor, **options):
        batch = processor(self.TEXTS, self.MOLECULES, modalities=NO_3D, **options)
        return batch, batch["attention_mask"].sum(1).tolist()

    def test_padding_to_a_length(self, processor):
        longest, real = self.lengths(processor)
        batch, same = self.lengths(processor, padding="max_length", max_length=40)
        assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, 40)
        assert same == real
        width = longest["input_ids"].shape[1]
        assert torch.equal(batch["input_ids"][:, -width:], longest["input_ids"])
        whole, _ = self.lengths(processor, padding="max_length")
        assert whole["input_ids"].shape[1] == processor.tokenizer.model_max_length
        with pytest.raises(UsageError, match=r"a row has \d+ tokens, more than max_length 4; pass"):
            self.lengths(processor, padding="max_length", max_length=4)

    def test_padding_to_a_multiple(self, processor):
        _, real = self.lengths(processor)
        for options in ({}, {"padding": "max_length", "max_length": 33}):
            batch, same = self.lengths(processor, pad_to_multiple_of=16, **options)
            assert batch["input_ids"].shape[1] == -(-(33 if options else max(real)) // 16) * 16
            assert same == real

    def test_truncation_cuts_the_end_and_no_molecule(self, processor):
        whole, (short, long) = self.lengths(processor, padding_side="right")
        batch, lengths = self.lengths(
            processor, padding_side="right", truncation=True, max_length=long - 1
        )
        assert lengths == [short, long - 1]
        assert torch.equal(batch["input_ids"], whole["input_ids"][:, : long - 1])
        with pytest.raises(UsageError, match=r"prompt 0 has a molecule up to token \d+; trunc"):
            self.lengths(processor, truncation=True, max_length=2)
        options = {"suffix": "x y z", "modalities": NO_3D}
        answered = processor("<mol> a", "C", **options)
        count = answered["input_ids"].shape[1]
        cut = processor("<mol> a", "C", truncation=True, max_length=count - 2, **options)
        for name in ("input_ids", "labels", "attention_mask"):
            assert torch.equal(cut[name], answered[name][:, : count - 2]), name
        assert (cut["labels"] != -100).any()

    def test_as_text_kwargs(self, processor):
        options = {"padding": "max_length", "max_length": 40, "padding_side": "right"}
        named, _ = self.lengths(processor, **options)
        nested, _ = self.lengths(processor, text_kwargs=options, padding=False, images=None)
        assert torch.equal(nested["input_ids"], named["input_ids"])

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"padding": "longst"}, "padding is 'longst'; use one of"),
            ({"truncation": "only_second"}, "truncation is 'only_second'; use one of"),
            ({"max_length": 40}, "max_length does nothing here"),
            ({"pad_to_multiple_of": 0}, "pad_to_multiple_of is 0"),
            ({"text_kwargs": {"stride": 2}}, "text_kwargs has 'stride'"),
            ({"images": ["a.png"]}, "images is given, but the model reads text and molecules"),
            ({"audio": [0.0]}, "audio is given"),
        ],
    )
    def test_what_does_nothing_is_refused(self, processor, options, message):
        with pytest.raises(UsageError, match=message):
            self.lengths(processor, **options)

    def test_no_special_tokens(self, processor):
        bare = processor("a", add_special_tokens=False)["input_ids"]
        assert torch.equal(bare, processor("a")["input_ids"][:, 1:])


def test_coordinates_stay_float32(processor):
    inputs = processor("<mol> a", "CCO")
    inputs["encoded_3d"] = torch.zeros(1, 1, 3, 1, 4)
    coordinates = inputs["coordinates"].clone()
    moved = inputs.to("cpu", torch.bfloat16)
    assert moved is inputs
    assert moved["coordinates"].dtype == torch.float32
    assert torch.equal(moved["coordinates"], coordinates)
    assert moved["encoded_3d"].dtype == torch.bfloat16
    assert moved["input_ids"].dtype == torch.int64
    assert inputs.to("meta", dtype=torch.float16)["coordinates"].device.type == "meta"
    molecules = processor.feature_extractor([["CCO"]]).to(torch.float16)
    assert molecules["coordinates"].dtype == torch.float32


def test_one_bos_at_the_start(processor):
    bos = processor.tokenizer.bos_token_id
    for text in (processor.prompt("What?"), "<mol> plain"):
        ids = processor(text, ["C"], modalities=NO_3D)["input_ids"][0]
        assert ids[0] == bos
        assert (ids == bos).sum() == 1


# --- chat template -------------------------------------------------------------------------------


def conversation(smiles="CCO"):
    parts = [{"type": "molecule", "smiles": smiles}, {"type": "text", "text": "What is it?"}]
    return [{"role": "user", "content": parts}]


def test_chat_template_keeps_the_molecule(processor, model):
    """On transformers 5.17 the private hook dropped it: fluent text about nothing."""
    batch = processor.apply_chat_template(
        conversation(), tokenize=True, add_generation_prompt=True, modalities=NO_3D
    )
    assert mol_count(processor, batch) == [B]
    assert batch["atom_valid"].sum() == 3
    direct = processor(processor.prompt("What is it?"), ["CCO"], modalities=NO_3D)
    assert batch.keys() == direct.keys()
    assert all(torch.equal(batch[name], direct[name]) for name in direct)
    assert model.generate(**batch, max_new_tokens=2).shape[1] > batch["input_ids"].shape[1]


def test_chat_template_batches_and_text(processor):
    text = processor.apply_chat_template(conversation(), add_generation_prompt=True)
    assert text == processor.prompt("What is it?")
    plain = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    batch = processor.apply_chat_template(
        [conversation("C"), plain], tokenize=True, modalities=NO_3D
    )
    assert batch["molecule_valid"].tolist() == [[True], [False]]
    ids = processor.apply_chat_template(plain, tokenize=True, return_dict=False)
    assert processor.decode(ids[0]) == "<s><user>Hello<assistant>Hi</s>"


@pytest.mark.parametrize("side", ["left", "right"])
def test_chat_template_marks_answers(processor, side):
    """They are what `suffix` makes labels of, in a dialogue too."""
    dialogues = [["a", "2"], ["what is it?", "a pear", "and is it polar?", "no, no"]]
    conversations = []
    for turns in dialogues:
        messages = [
            {"role": role, "content": [{"type": "text", "text": text, "smiles": None}]}
            for role, text in zip(["user", "assistant"] * 2, turns, strict=False)
        ]
        molecule = {"type": "molecule", "smiles": "CCO", "text": None}
        messages[0]["content"].insert(0, molecule)
        conversations.append(messages)
    options = {"padding_side": side}
    batch = processor.apply_chat_template(
        conversations,
        tokenize=True,
        return_assistant_tokens_mask=True,
        modalities=NO_3D,
        processor_kwargs=options,
    )
    suffixes = [
        [text if i % 2 == 0 else processor.further_prompt(text) for i, text in enumerate(turns[1:])]
        for turns in dialogues
    ]
    prompts = [processor.prompt(turns[0]) for turns in dialogues]
    labelled = processor(prompts, ["CCO"] * 2, suffix=suffixes, modalities=NO_3D, **options)
    assert torch.equal(batch["input_ids"], labelled["input_ids"])
    labels = torch.where(batch["assistant_masks"] == 1, batch["input_ids"], -100)
    assert torch.equal(labels, labelled["labels"])
    length = int(batch["attention_mask"].sum(1).max()) - 2
    cut = processor.apply_chat_template(
        conversations,
        tokenize=True,
        return_assistant_tokens_mask=True,
        modalities=NO_3D,
        processor_kwargs={"padding_side": "right", "truncation": True, "max_length": length},
    )
    assert cut["assistant_masks"].shape == cut["input_ids"].shape == (2, length)


def test_a_template_that_marks_no_answers_is_refused(processor):
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(UsageError, match="answers cannot be marked"):
        processor.apply_chat_template(
            *([{"role": "user", "content": "a"}],),
            chat_template=template,
            tokenize=True,
            return_assistant_tokens_mask=True,
        )


def test_chat_template_refuses_what_it_cannot_do(processor):
    with pytest.raises(ValueError, match="would drop the molecules"):
        processor.apply_chat_template(
            conversation(), tokenize=True, return_dict=False, modalities=NO_3D
        )
    image = [{"role": "user", "content": [{"type": "image", "url": "x"}]}]
    with pytest.raises(ValueError, match="'image'"):
        processor.apply_chat_template(image)
    nothing = [{"role": "user", "content": [{"type": "molecule"}]}]
    with pytest.raises(ValueError, match='no "smiles"'):
        processor.apply_chat_template(nothing, tokenize=True)


def test_a_template_of_plain_strings_works(processor):
    """Most language models' own templates know no molecule parts."""
    template = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    text = processor.apply_chat_template(conversation(), chat_template=template)
    assert text == "[<mol>\nWhat is it?]"


def test_prompt_without_a_chat_template(tokenizer):
    _, processor = build(tokenizer)
    processor.tokenizer.chat_template = processor.chat_template = None
    assert processor.prompt("Why?", num_molecules=2) == "<mol>\n<mol>\nWhy?\n"


# --- the processor itself ------------------------------------------------------------------------


def test_a_tokenizer_without_the_placeholder_is_refused(tokenizer):
    extractor = MoleculeFeatureExtractor(["[C]"])
    with pytest.raises(ValueError, match="does not know '<m0l>'"):
        CollamoProcessor(extractor, tokenizer, mol_token="<m0l>")


def test_save_and_load(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    again = CollamoProcessor.from_pretrained(tmp_path)
    assert again.num_query_tokens == B
    assert again.mol_token_id == processor.mol_token_id
    assert again.feature_extractor.selfies_tokens == processor.feature_extractor.selfies_tokens
    assert again.chat_template == processor.chat_template
    assert {"input_ids", "hops", "molecule_valid"} <= set(again.model_input_names)


def test_tokenizer_splits_digits_and_round_trips(tokenizer):
    ids = tokenizer("12.5", add_special_tokens=False)["input_ids"]
    assert [tokenizer.decode([i]) for i in ids] == ["1", "2", ".", "5"]
    for text in ("Å and 分子", "C[C@H](N)C", "  two  spaces\n"):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    assert tokenizer.convert_tokens_to_ids(["<pad>", "<s>", "</s>", "<mol>"]) == [0, 1, 2, 3]


# --- where people put it -----------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_it_works_in_the_workers_of_a_loader(processor, workers):
    question = processor.prompt("Is it polar?")
    loader = torch.utils.data.DataLoader(
        ["CCO", "c1ccccc1O", "CC(N)=O"],
        batch_size=2,
        num_workers=workers,
        collate_fn=lambda smiles: processor([question] * len(smiles), smiles),
        multiprocessing_context="fork" if workers else None,  # as a lambda asks for
    )
    batches = list(loader)
    assert [len(batch["input_ids"]) for batch in batches] == [2, 1]
    here = processor([question] * 2, ["CCO", "c1ccccc1O"])
    assert all(batch["has_3d"].all() for batch in batches)
    assert torch.equal(batches[0]["coordinates"], here["coordinates"])


def test_an_rdkit_mol_is_a_molecule(processor):
    mol = Chem.MolFromSmiles("OCC")
    one = processor("<mol>", mol)
    other = processor(["<mol>"], [[parse_molecule(Chem.MolToSmiles(mol, canonical=False))]])
    for name in one:
        assert torch.equal(one[name], other[name])
    assert len(processor(["<mol>", "<mol>"], [mol, "CC"], modalities=NO_3D)["input_ids"]) == 2
    two = processor("<mol><mol>", (mol, np.str_("CC")), modalities=NO_3D)
    assert two["molecule_valid"].tolist() == [[True, True]]
    message = {"role": "user", "content": [{"type": "molecule", "smiles": mol}]}
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    batch = processor.apply_chat_template(
        [message], chat_template=template, tokenize=True, modalities=NO_3D
    )
    assert mol_count(processor, batch) == [B]


@pytest.mark.parametrize("nothing", [None, math.nan, np.float32("nan"), np.float64("nan")])
def test_an_empty_cell_is_named_with_its_place(processor, nothing):
    for molecules in (["CCO", nothing], [["CCO"], [nothing]], np.array(["CCO", nothing], object)):
        with pytest.raises(MoleculeError, match=r"prompt 1: there is no molecule \((nan|None)"):
            processor(["<mol>", "<mol>"], molecules, modalities=NO_3D)
    if nothing is not None:  # None stands for prompts without molecules
        with pytest.raises(MoleculeError, match="prompt 0: there is no molecule"):
            processor("<mol>", nothing, modalities=NO_3D)


@pytest.mark.parametrize("odd", [b"CCO", 7, {"smiles": "CCO"}, object()])
def test_what_is_no_molecule_is_named_by_its_type(processor, odd):
    with pytest.raises(MoleculeError, match=f"prompt 0: a molecule is .*not {type(odd).__name__}"):
        processor(["<mol>"], [odd], modalities=NO_3D)
