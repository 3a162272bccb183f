"""vLLM opens a merged model with its molecules, and answers as the model itself (`make test-vllm`).

A model of random weights, LoRA on it: every input tells in its answers. Its heads are 32 wide, the
narrowest that vLLM serves.
"""

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("vllm", reason="make test-vllm")

from peft import LoraConfig, get_peft_model
from rdkit import Chem
from vllm import LLM, EngineArgs, ModelRegistry, SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.hasher import MultiModalHasher
from vllm.renderers import ChatParams, renderer_from_config

import collamo
from collamo.chem.conformer import absent_conformer, embed_conformer
from collamo.chem.features import featurize
from collamo.chem.molecule import Molecule
from collamo.errors import MoleculeError, UsageError
from collamo.inference.vllm_plugin.molecules import ReadMolecules
from collamo.model import CollamoProcessor, train_tokenizer
from collamo.model.merge import merge

sys.path.insert(0, str(Path(__file__).parents[2] / "model"))
from model_helpers import build

ROOT = Path(__file__).parents[3]
TOKENS = 12
GREEDY = SamplingParams(max_tokens=TOKENS, temperature=0, logprobs=0)
ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"
QUESTION = "What is its weight?"
# Long enough that a block of the prefix cache (32 tokens) is full of it and of the molecule.
LONG = QUESTION + " How many hydroxyl groups does it have, and is it one that dissolves in water?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What `collamo merge` makes of an adapter."""
    top = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer(["How many hydroxyl groups? 12.5", "What is its weight? -3"] * 9)
    torch.manual_seed(0)
    model, processor = build(
        tokenizer, hidden_size=128, num_attention_heads=4, num_key_value_heads=4
    )
    model.save_pretrained(top / "base")
    processor.save_pretrained(top / "base")
    model = collamo.load(top / "base").model
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapter = get_peft_model(model, lora)
    adapter.peft_config["default"].base_model_name_or_path = str(top / "base")
    adapter.save_pretrained(top / "adapter")
    merge(top / "adapter", top / "merged")
    return top / "merged"


@pytest.fixture(scope="module")
def assistant(folder):
    return collamo.load(folder)


@pytest.fixture(scope="module")
def llm(folder, entry_point):
    llm = LLM(
        str(folder),
        dtype="float32",
        enforce_eager=True,
        max_num_seqs=8,
        block_size=32,
        seed=0,
        limit_mm_per_prompt={"molecule": 3},
    )
    assert "CollamoForConditionalGeneration" in ModelRegistry.get_supported_archs()
    yield llm
    llm.llm_engine.engine_core.shutdown()


@pytest.fixture(scope="module")
def expected(assistant):
    """``expected(molecules, question, views, seed)``: the tokens of `generate`."""

    def tokens(molecules, question=QUESTION, views=("1d", "2d", "3d"), seed=0):
        features = [
            m if not isinstance(m, str) else featurize(*_embedded(m, seed)) for m in molecules
        ]
        processor, model = assistant.processor, assistant.model
        text = processor.prompt(question, len(molecules))
        inputs = processor(text, [features] if features else None, modalities=views)
        tokens = model.generate(
            **inputs,
            max_new_tokens=TOKENS,
            do_sample=False,
            pad_token_id=processor.tokenizer.pad_token_id,
            eos_token_id=processor.tokenizer.eos_token_id,
        )
        return tokens[0, inputs["input_ids"].shape[1] :].tolist()

    return tokens


def _embedded(smiles, seed):
    molecule = Molecule.from_smiles(smiles)
    return molecule, embed_conformer(molecule, seed)


@pytest.fixture(scope="module")
def prompt(assistant):
    """``prompt(molecules, question, **kwargs)``: what `LLM.generate` takes."""

    def make(molecules, question=QUESTION, **kwargs):
        made = {"prompt": assistant.processor.prompt(question, len(molecules))}
        if molecules:
            made["multi_modal_data"] = {"molecule": molecules}
        return made | ({"mm_processor_kwargs": kwargs} if kwargs else {})

    return make


def tokens(outputs):
    return [list(output.outputs[0].token_ids) for output in outputs]


def generated(llm, prompts):
    return tokens(llm.generate(prompts, GREEDY, use_tqdm=False))


def one(llm, prompt):
    """(tokens, log-probability of them all, tokens that the prefix cache had) of one prompt.

    Of two inputs that differ the tokens may be the same, the probability is not.
    """
    (output,) = llm.generate([prompt], GREEDY, use_tqdm=False)
    (answer,) = output.outputs
    return list(answer.token_ids), round(answer.cumulative_logprob, 4), output.num_cached_tokens


# Of all sizes, without SELFIES, without a conformer, fragments, an element that Uni-Mol lacks.
ALONE = ["C", "CCO", ASPIRIN, "C" * 60, "CC.[Na+]", "C[Se]C", "*C*", "[Cu+2]", "F/C=C/F"]
TOGETHER = [
    [],
    ["CCO", "C" * 30],
    [ASPIRIN, "C", "c1ccccc1O"],
    ["CCO", "CCO"],
    ["CCO", ASPIRIN, "CCO"],
]
VIEWS = [("1d",), ("2d",), ("3d",), ("1d", "3d"), ("2d", "3d")]


def test_answers_are_those_of_generate(llm, prompt, expected):
    """All in one call: prompts whose molecules differ in size run together."""
    cases = [([molecule], QUESTION, {}) for molecule in ALONE]
    cases += [(molecules, QUESTION, {}) for molecules in TOGETHER]
    cases += [([ASPIRIN], QUESTION, {"modalities": list(views)}) for views in VIEWS]
    cases += [(["*C*", "CCO"], "Is it?", {"modalities": ["3d"]})]
    answers = generated(llm, [prompt(m, question, **kwargs) for m, question, kwargs in cases])
    for (molecules, question, kwargs), answer in zip(cases, answers, strict=True):
        views = tuple(kwargs.get("modalities", ("1d", "2d", "3d")))
        assert answer == expected(molecules, question, views), (molecules, question, views)
    assert len({tuple(answer) for answer in answers}) > 15  # every input tells


def test_a_prefix_is_taken_from_the_cache_with_the_same_molecule_alone(llm, prompt, expected):
    """The danger: texts and numbers of soft tokens are equal, molecules are not."""
    llm.reset_prefix_cache()
    others = ["CCCCO", "OCCCC", "CCCCN", "CCC(C)O", "C/C=C/O", "C/C=C\\O", "CCCCC", ASPIRIN]
    probabilities = []
    for turn in range(2):
        for molecule in others:
            answer, probability, cached = one(llm, prompt([molecule], LONG))
            assert (cached >= 32) == (turn == 1), molecule
            assert answer == expected([molecule], LONG), molecule
            probabilities.append(probability)
    assert probabilities[: len(others)] == probabilities[len(others) :]
    assert len(set(probabilities)) == len(others)


def test_seeds_and_views_are_part_of_the_key(llm, prompt, expected):
    llm.reset_prefix_cache()
    octanediol = "OCCCCCCCCO"
    cases = [({"conformer_seed": seed}, ("1d", "2d", "3d"), seed) for seed in (0, 7, 8)]
    cases += [({"modalities": ["2d"]}, ("2d",), 0), ({"modalities": ["3d"]}, ("3d",), 0)]
    probabilities = []
    for kwargs, views, seed in [*cases, *cases]:
        answer, probability, _ = one(llm, prompt([octanediol], LONG, **kwargs))
        assert answer == expected([octanediol], LONG, views, seed)
        probabilities.append(probability)
    assert probabilities[: len(cases)] == probabilities[len(cases) :]
    assert len(set(probabilities)) == len(cases)
    # What the checkpoint says by itself.
    _, probability, cached = one(llm, prompt([octanediol], LONG))
    assert (probability, cached >= 32) == (probabilities[0], True)


def test_coordinates_are_part_of_the_key(llm, prompt, expected):
    """Those that a mol block brings, and those of features."""
    llm.reset_prefix_cache()
    molecule = Molecule.from_smiles("OCCCCCCCCO")
    conformers = [embed_conformer(molecule, seed) for seed in (3, 4)]
    given, read = [], []
    for conformer in (*conformers, absent_conformer("none")):
        given.append(featurize(molecule, conformer))
        read.append(given[-1])
    for conformer in conformers:
        mol = Chem.Mol(molecule.mol)
        positions = Chem.Conformer(mol.GetNumAtoms())
        positions.SetPositions(conformer.coordinates.astype(np.float64))
        mol.AddConformer(positions)
        given.append(Chem.MolToMolBlock(mol))
        from_block = Molecule.from_molblock(given[-1])
        read.append(featurize(from_block, embed_conformer(from_block)))
    found = [one(llm, prompt([each], LONG)) for each in given]
    assert [answer for answer, *_ in found] == [expected([each], LONG) for each in read]
    assert len({probability for _, probability, _ in found[:3]}) == 3
    assert len({probability for _, probability, _ in found[3:]}) == 2


def test_what_is_another_input_has_another_key(assistant):
    methanol, other = Molecule.from_smiles("CO"), Molecule.from_smiles("OC")
    absent = featurize(methanol, absent_conformer("none"))
    embedded = [
        featurize(methanol, embed_conformer(methanol, seed)) for seed in (1, 2)
    ]  # RDKit takes 0 for 1
    charged = [Molecule.from_smiles(s) for s in ("[CH3]", "[CH3+]", "[CH3-]", "[13CH3]", "C", "*")]
    groups = ([m] for m in [methanol, other, absent, *embedded, *charged])

    def keys(molecules):
        items = ReadMolecules(molecules).get_all_items_for_hash()
        return [MultiModalHasher.hash_kwargs("blake3", molecule=item) for item in items]

    found = [key for group in groups for key in keys(group)]
    assert len(set(found)) == len(found)
    assert keys([Molecule.from_smiles("CO"), methanol]) == [found[0]] * 2


@pytest.mark.parametrize(
    ("molecules", "said"),
    [
        (["CCO", "C1CC"], r"molecules\[1\]: SMILES 'C1CC'"),
        (["[C][Nonsense]", "CCO"], r"molecules\[0\]: SELFIES '\[C\]\[Nonsense\]'"),
        ([None], r"molecules\[0\]: there is no molecule"),
        ([3], r"molecules\[0\]: a molecule is SMILES"),
        (["C" * 600], "600 atoms"),
    ],
)
def test_a_bad_molecule_is_named_and_the_engine_goes_on(llm, prompt, expected, molecules, said):
    with pytest.raises(MoleculeError, match=said):
        llm.generate([prompt(["CCO"]), prompt(molecules)], GREEDY, use_tqdm=False)
    assert generated(llm, [prompt(["CCO"])]) == [expected(["CCO"])]


def test_what_would_be_an_answer_about_no_molecule_is_refused(llm, prompt):
    def refused(made, said, error=UsageError):
        with pytest.raises(error, match=said):
            llm.generate([made], GREEDY, use_tqdm=False)

    text = prompt(["CCO"])["prompt"]
    refused({"prompt": text}, "<mol' is no molecule")
    refused({"prompt": text, "multi_modal_data": {"molecule": ["CCO", "C"]}}, "1 <mol>, but 2")
    refused({"prompt": text * 2, "multi_modal_data": {"molecule": "CCO"}}, "2 <mol>, but 1")
    ids = llm.get_tokenizer()(text)["input_ids"]
    refused({"prompt_token_ids": ids}, "1 <mol>, but 0")
    tagged = {"prompt": text + '<mol smiles="C"/>', "multi_modal_data": {"molecule": ["CCO"]}}
    refused(tagged, "a tag for 'C' and multi_modal_data")
    refused(prompt(["CCO"], modality=["2d"]), "did you mean 'modalities'")
    refused(prompt(["CCO"], modalities=["4d"]), "4d")
    refused(prompt(["CCO"], modalities="2d"), "must be a list")
    refused(prompt(["CCO"], conformer_seed="1"), "must be an integer")
    refused(prompt(["C"] * 4), "At most 3 molecule", VLLMValidationError)
    refused({"prompt": text, "multi_modal_data": {"image": ["CCO"]}}, "has 'image'")


def test_molecules_in_messages_and_tags(llm, expected, assistant):
    parts = [
        {"type": "molecule", "smiles": "CCO"},
        {"type": "molecule", "selfies": "[C][C][C]"},
        {"type": "text", "text": QUESTION},
    ]
    talk = [{"role": "user", "content": parts}]
    tag = f'<mol smiles="CCO"/><mol smiles="CCC"/>{QUESTION}'
    answers = tokens(llm.chat([talk, [{"role": "user", "content": tag}]], GREEDY, use_tqdm=False))
    assert answers == [expected(["CCO", "CCC"])] * 2
    start = assistant.processor.tokenizer.bos_token
    text = assistant.processor.prompt(QUESTION).replace("<mol>", "<mol smiles='CCO'/>")
    made = {"prompt": text.removeprefix(start), "multi_modal_data": {"molecule": []}}
    assert generated(llm, [made, start + made["prompt"]]) == [expected(["CCO"])] * 2
    with pytest.raises(MoleculeError, match="C1CC"):
        llm.chat([{"role": "user", "content": '<mol smiles="C1CC"/> Is it?'}], GREEDY)


def test_mol_is_never_an_answer(llm, prompt, assistant):
    mol = assistant.processor.mol_token_id
    sampling = SamplingParams(max_tokens=64, temperature=2.0, seed=1, logit_bias={mol: 100.0})
    (output,) = llm.generate([prompt(["CCO"])], sampling, use_tqdm=False)
    assert mol not in output.outputs[0].token_ids


def test_a_model_that_reads_smiles_gets_them_as_text(assistant, entry_point, tmp_path):
    """The baseline without a projector: its prompts are the processor's, tokens and all."""
    shutil.copytree(assistant.model.config.name_or_path, tmp_path / "smiles")
    processor = CollamoProcessor.from_pretrained(tmp_path / "smiles")
    processor.molecules_as = "smiles"
    processor.save_pretrained(tmp_path / "smiles")
    config = EngineArgs(str(tmp_path / "smiles"), dtype="float32").create_engine_config()
    renderer = renderer_from_config(config)
    molecules = ["OCC", ASPIRIN]
    text = processor.prompt(QUESTION, 2)
    expected = processor(text, [molecules])["input_ids"][0].tolist()
    given = {"prompt": text, "multi_modal_data": {"molecule": molecules}}
    tagged = {"prompt": text.replace("<mol>", "<mol smiles='{}'/>").format(*molecules)}
    inputs = renderer.render_cmpl([given, tagged])
    parts = [{"type": "molecule", "smiles": smiles} for smiles in molecules]
    talk = [{"role": "user", "content": [*parts, {"type": "text", "text": QUESTION}]}]
    options = ChatParams(chat_template_kwargs={"add_generation_prompt": True})
    inputs += renderer.render_chat([talk], options)[1]
    for each in inputs:
        assert (each["type"], each["prompt_token_ids"]) == ("token", expected)
    given = {"prompt_token_ids": expected, "multi_modal_data": {"molecule": molecules}}
    with pytest.raises(UsageError, match="reads molecules as text"):
        renderer.render_cmpl([given])
    renderer.shutdown()


def test_lora_beside_a_model_is_refused(folder, entry_point):
    with pytest.raises(ValueError, match="collamo merge"):
        EngineArgs(str(folder), enable_lora=True).create_engine_config()


def test_vllms_server_takes_molecules(folder, entry_point, assistant):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--model", folder, "--port", port, "--dtype", "float32", "--enforce-eager"]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *map(str, options)]
    process = subprocess.Popen(command)

    def answer(content):
        body = {"model": str(folder), "max_tokens": TOKENS, "temperature": 0}
        body["messages"] = [{"role": "user", "content": content}]
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/chat/completions",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        try:
            return json.load(urllib.request.urlopen(request))["choices"][0]["message"]["content"]
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)["error"]["message"]

    try:
        part = {"type": "molecule", "smiles": ASPIRIN}
        question = [part, {"type": "text", "text": QUESTION}]
        while True:
            try:
                first = answer(question)
                break
            except urllib.error.URLError:
                assert process.poll() is None
                time.sleep(0.5)
        said = assistant.ask(ASPIRIN, QUESTION, max_new_tokens=TOKENS)
        # A character that the last token has begun is not shown by vLLM.
        assert first.strip().rstrip("\ufffd") == said.rstrip("\ufffd")
        code, message = answer([{"type": "molecule", "smiles": "C1CC"}, *question[1:]])
        assert code == 400
        assert "SMILES 'C1CC'" in message
        assert answer(f'<mol smiles="{ASPIRIN}"/>{QUESTION}') == first
    finally:
        process.terminate()
        process.wait(timeout=60)
