"""The front door: what `collamo.load` opens answers as its parts do."""

import pytest
import torch
from rdkit import Chem
from rdkit.Chem import rdDistGeom
from trained import trained

import collamo
from collamo.data import tasks
from collamo.errors import MissingDependencyError, MoleculeError, UsageError
from collamo.inference.answers import answer
from collamo.inference.assistant import CAPTION_QUESTION
from collamo.inference.checkpoint import find_checkpoint
from collamo.inference.molecules import molecule_features, notes, read_molecule

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
RINGS = "How many rings does it have?"
MOLECULES = ["CCO", "c1ccccc1O", "CC(=O)Oc1ccccc1C(=O)O"]


@pytest.fixture(scope="module")
def assistant():
    return collamo.load(trained().checkpoint)


def test_one_of_each_is_a_text_and_lists_are_lists(assistant):
    model, processor = assistant.model, assistant.processor
    questions = [RINGS, "Is it an acid?", "Name it."]
    truth = {
        (m, q): answer(model, processor, [(m, q)], max_new_tokens=8)[0]
        for m in MOLECULES
        for q in questions
    }

    def ask(molecule, question):
        return assistant.ask(molecule, question, max_new_tokens=8)

    assert ask("CCO", RINGS) == truth["CCO", RINGS]
    assert ask("CCO", questions) == [truth["CCO", q] for q in questions]
    assert ask(MOLECULES, RINGS) == [truth[m, RINGS] for m in MOLECULES]
    pairs = list(zip(MOLECULES, questions, strict=True))
    assert ask(iter(MOLECULES), tuple(questions)) == [truth[pair] for pair in pairs]
    assert ask(["CCO"], RINGS) == ask("CCO", [RINGS]) == [truth["CCO", RINGS]]
    assert ask([], RINGS) == ask("CCO", []) == []


def test_every_form_of_a_molecule_is_the_same_molecule(assistant):
    mol = Chem.MolFromSmiles("CCO")
    block = Chem.MolToMolBlock(mol)
    forms = ["CCO", "[C][C][O]", mol, block, read_molecule("CCO"), *assistant.features("CCO")]
    soft = assistant.soft_tokens(forms)
    assert torch.equal(soft, soft[:1].expand_as(soft))


def test_an_rdkit_mol_brings_its_geometry():
    mol = Chem.AddHs(Chem.MolFromSmiles("CCO"))
    rdDistGeom.EmbedMolecule(mol, randomSeed=3)
    (features,) = molecule_features([read_molecule(mol)])
    assert features.conformer.method == "given"
    heavy = mol.GetConformer().GetPositions()[:3]
    assert features.conformer.coordinates == pytest.approx(heavy, abs=1e-5)
    assert list(molecule_features([features])) == [features]


def test_a_caption_is_the_answer_to_a_question_of_training(assistant):
    assert CAPTION_QUESTION in tasks._CAPTION_WORDINGS
    expected = assistant.ask("CCO", CAPTION_QUESTION)
    assert assistant.caption("CCO") == expected
    assert assistant.caption(["CCO"], max_new_tokens=128) == [expected]


def test_soft_tokens_are_what_the_model_puts_into_the_prompt(assistant):
    model, processor = assistant.model, assistant.processor
    soft = assistant.soft_tokens(MOLECULES, batch_size=2)
    width = model.config.text_config.hidden_size
    assert soft.shape == (3, processor.num_query_tokens, width)
    assert not soft.requires_grad
    for molecule, row in zip(MOLECULES, soft, strict=True):
        inputs = processor(processor.prompt(RINGS), [molecule])
        inside = model(**inputs).molecule_hidden_states[0, 0]
        # Encoded in other company, so products round otherwise.
        torch.testing.assert_close(row, inside, atol=1e-5, rtol=1e-5)
    assert assistant.soft_tokens("CCO").shape == soft[:1].shape


def test_prompt_embeds_are_what_the_language_model_reads(assistant):
    model, processor = assistant.model, assistant.processor
    inputs = processor(processor.prompt(RINGS), ["CCO"])
    embeds = assistant.prompt_embeds(RINGS, "CCO")
    assert embeds.shape == (inputs["input_ids"].shape[1], model.config.text_config.hidden_size)
    hidden = model.model.language_model(inputs_embeds=embeds[None]).last_hidden_state
    torch.testing.assert_close(model.lm_head(hidden), model(**inputs).logits)
    with pytest.raises(ValueError, match="take it out"):
        assistant.prompt_embeds("a <mol> b", "CCO")
    with pytest.raises(UsageError, match="positions; shorten it"):
        assistant.prompt_embeds("why " * 5000, "CCO")
    with pytest.raises(UsageError, match="the question is empty"):
        assistant.prompt_embeds(" ", "CCO")
    with pytest.raises(MoleculeError, match=r"molecules\[1\]: SMILES 'C1CC'"):
        assistant.prompt_embeds(RINGS, ["CCO", "C1CC"])


def test_prompts_of_conversations(assistant):
    """Several molecules, turns, views: what transformers' own way makes of them."""
    model, processor = assistant.model, assistant.processor
    parts = [{"type": "molecule", "smiles": "CCO"}, {"type": "text", "text": "Or "}]
    parts += [{"type": "molecule", "selfies": "[C][C]"}, {"type": "text", "text": RINGS}]
    turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": "None."}]
    turns += [{"role": "user", "content": "Sure?"}]
    parts[2] = {"type": "molecule"}
    embeds = assistant.prompt_embeds(turns, ["[C][C]"], modalities=("1d", "2d"))
    parts[2] = {"type": "molecule", "smiles": "CC"}
    options = {"add_generation_prompt": True, "tokenize": True, "modalities": ("1d", "2d")}
    inputs = processor.apply_chat_template(turns, **options)
    hidden = model.model.language_model(inputs_embeds=embeds[None]).last_hidden_state
    torch.testing.assert_close(model.lm_head(hidden), model(**inputs).logits)
    assert not torch.equal(embeds, assistant.prompt_embeds(turns))  # which sees 3D too
    written = f'<mol smiles="CCO"/> Or <mol selfies="[C][C]"/>{RINGS}'
    turns[0] = {"role": "user", "content": written}
    assert torch.equal(embeds, assistant.prompt_embeds(turns, modalities=("1d", "2d")))


def test_prompts_need_no_language_model(assistant):
    encoder = collamo.load(trained().checkpoint, language_model=False)
    assert len(list(encoder.model.parameters())) < len(list(assistant.model.parameters()))
    assert not any("layers" in name for name, _ in encoder.model.language_model.named_modules())
    assert torch.equal(encoder.soft_tokens(MOLECULES), assistant.soft_tokens(MOLECULES))
    embeds = [each.prompt_embeds(RINGS, MOLECULES[:2]) for each in (encoder, assistant)]
    assert torch.equal(*embeds)
    with pytest.raises(UsageError, match="attn_implementation is the language model's"):
        collamo.load(trained().checkpoint, language_model=False, attn_implementation="eager")


def test_a_model_in_training_stays_in_training(assistant):
    calm = assistant.soft_tokens("CCO")
    assistant.model.train()
    try:
        assert torch.equal(assistant.soft_tokens("CCO"), calm)
        assert assistant.model.training
    finally:
        assistant.model.eval()


def test_bad_molecules_are_named_by_their_places(assistant):
    with pytest.raises(MoleculeError, match=r"^SMILES 'C1CC' has an unclosed ring"):
        assistant.ask("C1CC", RINGS)
    message = r"^molecules\[1\]: SMILES 'C1CC' .*\(as bad: molecules\[3\], molecules\[4\]\)$"
    for ask in (assistant.soft_tokens, assistant.caption):
        with pytest.raises(MoleculeError, match=message):
            ask(["CCO", "C1CC", "C", "", 7])
    with pytest.raises(MoleculeError, match="an RDKit Mol or a Molecule, not int"):
        assistant.ask(7, RINGS)


def test_what_cannot_be_asked_is_refused(assistant):
    with pytest.raises(UsageError, match="the question is empty"):
        assistant.ask("CCO", [RINGS, " "])
    with pytest.raises(UsageError, match=r"2 molecules and 3 questions; give as many of both"):
        assistant.ask(["C", "CC"], [RINGS] * 3)
    with pytest.raises(UsageError, match="contains <mol>"):
        assistant.ask("CCO", "a <mol> b")
    with pytest.raises(UsageError, match="no molecules; give at least one"):
        assistant.soft_tokens([])


def test_the_reader_of_an_answer_is_told_what_the_model_did_not_see():
    (heavy,) = molecule_features([read_molecule("[Pd]")])
    assert notes(heavy) == ["the 3D encoder reads Pd as [UNK]"]
    (chain,) = molecule_features([read_molecule("C" * 300)], seconds=0.5)
    assert notes(chain) == ["answered without 3D: no geometry within 0.5 s of processor time"]
    (plain,) = molecule_features([read_molecule("CCO")])
    assert notes(plain) == []


def test_the_checkpoint_is_named_or_found(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLLAMO_CHECKPOINT", raising=False)
    with pytest.raises(MissingDependencyError, match=r"no trained weights here: .* `make demo`"):
        find_checkpoint()
    monkeypatch.setenv("COLLAMO_CHECKPOINT", str(trained().checkpoint))
    assert find_checkpoint() == trained().checkpoint
    with pytest.raises(MissingDependencyError, match="has no config"):
        find_checkpoint(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(MissingDependencyError, match="is a file: give its folder"):
        collamo.load(tmp_path / "file")


def test_an_adapter_gives_what_its_merged_model_gives(assistant):
    adapter = collamo.load(trained().folder / "stage2" / "adapter")
    assert len(adapter.ask(MOLECULES, RINGS, max_new_tokens=4)) == len(MOLECULES)
    torch.testing.assert_close(adapter.soft_tokens("CCO"), assistant.soft_tokens("CCO"))
    encoder = collamo.load(trained().folder / "stage2" / "adapter", language_model=False)
    embeds = [each.prompt_embeds(RINGS, "CCO") for each in (adapter, assistant, encoder)]
    torch.testing.assert_close(embeds[0], embeds[1])
    assert torch.equal(embeds[0], embeds[2])  # the adapter's projector, not the base's
    stage1 = collamo.load(trained().folder / "stage1" / "final", language_model=False)
    assert not torch.equal(embeds[2], stage1.prompt_embeds(RINGS, "CCO"))
