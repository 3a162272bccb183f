"""Reading molecules: what is read, what is refused with which words, and one atom order."""

import random

import numpy as np
import pytest
import selfies
from hypothesis import given, settings
from hypothesis import strategies as st
from rdkit import Chem

from collamo.chem.conformer import embed_conformer
from collamo.chem.features import featurize
from collamo.chem.molecule import (
    MAX_HEAVY_ATOMS,
    Molecule,
    RejectedMolecule,
    parse_molecule,
    split_smiles_line,
)
from collamo.errors import MoleculeError

# salts, isotopes, explicit H, H2, one atom, charges, E/Z, R/S, aromatic N-H, branches, two rings
ALIGNED = [
    "[Na+].CC(=O)[O-]",
    "[2H]O[2H]",
    "[H]C([H])([H])O[H]",
    "[H][H]",
    "[He]",
    "C",
    "[NH4+].[Cl-]",
    "[13CH3]C(=O)O",
    "C[N+](C)(C)CC([O-])=O",
    "F/C=C/Cl",
    "F/C=C\\Cl",
    "C[C@H](N)C(=O)O",
    "C[C@@H](O)[C@H](F)Cl",
    "c1cc[nH]c1",
    "CC(C)(CC1CC2CC1OC2(N)C)O",
    "OCC1OC(O)C(O)C(O)C1O.Cl.Cl",
    "[O-][n+]1ccccc1",
    "C%10CC%10C1CC1",
]


def symbols(mol):
    return [atom.GetSymbol() for atom in mol.GetAtoms()]


def read(text, reader=parse_molecule):
    """Return (molecule, None) or (None, message); any other exception is a failure."""
    try:
        return reader(text), None
    except MoleculeError as error:
        return None, str(error)


@pytest.mark.parametrize("smiles", ALIGNED)
def test_tokens_graph_and_conformer_agree_atom_by_atom(smiles):
    molecule = parse_molecule(smiles)
    features = featurize(molecule, embed_conformer(molecule))
    assert [n + 1 for n in features.atom_features[:, 0]] == [
        atom.GetAtomicNum() for atom in molecule.mol.GetAtoms()
    ]
    assert features.conformer.coordinates.shape == (molecule.num_atoms, 3)
    assert_tokens_are_atoms(molecule)
    assert_bond_lengths_are_bonds(features)


def assert_tokens_are_atoms(molecule):
    """Every atom has one token, and the token names its element."""
    tokens, atoms = molecule.selfies
    assert tokens == tuple(selfies.split_selfies("".join(tokens)))
    named = {atom: token for token, atom in zip(tokens, atoms, strict=True) if atom >= 0}
    assert sorted(named) == list(range(molecule.num_atoms))
    for atom, token in named.items():
        assert molecule.mol.GetAtomWithIdx(atom).GetSymbol() in token


def assert_bond_lengths_are_bonds(features):
    """Bonded atoms are nearer than 2.6 Å and no two atoms share a place: the order is right."""
    r = features.conformer.coordinates
    distance = np.linalg.norm(r[:, None] - r[None], axis=-1)
    i, j = features.edge_index
    assert (distance[i, j] < 2.6).all()
    assert (distance + 9 * np.eye(len(r)) > 0.5).all()


@pytest.mark.parametrize("smiles", ALIGNED)
def test_the_smiles_gives_the_same_atoms_in_the_same_order(smiles):
    molecule = parse_molecule(smiles)
    again = parse_molecule(molecule.smiles)
    assert symbols(again.mol) == symbols(molecule.mol)
    assert again.canonical_smiles == molecule.canonical_smiles


@pytest.mark.parametrize("smiles", ALIGNED)
def test_selfies_decodes_to_the_same_molecule(smiles):
    molecule = parse_molecule(smiles)
    again = Molecule.from_selfies("".join(molecule.selfies.tokens))
    assert again.canonical_smiles == molecule.canonical_smiles


def test_token_atoms_follow_the_graph_not_just_the_elements():
    """Neighbouring tokens of a chain are neighbouring atoms, also when the mol was shuffled."""
    mol = Chem.MolFromSmiles("CCCCCCO")
    shuffled = Chem.RenumberAtoms(mol, [3, 0, 6, 2, 5, 1, 4])
    molecule = Molecule.from_mol(shuffled)
    assert_tokens_are_atoms(molecule)
    atoms = [a for a in molecule.selfies.atoms if a >= 0]
    order = [a for a in atoms if molecule.mol.GetAtomWithIdx(a).GetDegree() == 1]
    assert len(order) == 2
    source = [shuffled.GetAtomWithIdx(i).GetSymbol() for i in molecule.source_atoms]
    assert source == symbols(molecule.mol)


def test_length_tokens_are_not_atoms():
    """In [C][Branch1][C][O][O] the second [C] is the length of the branch."""
    molecule = parse_molecule("CC(O)(O)N")
    tokens, atoms = molecule.selfies
    assert tokens[:5] == ("[C]", "[C]", "[Branch1]", "[C]", "[O]")
    assert atoms[:5] == (0, 1, -1, -1, 2)


def test_guesses_selfies_smiles_and_mol_block():
    assert parse_molecule("[C][C][O]").canonical_smiles == "CCO"
    assert parse_molecule("[C][=C]").canonical_smiles == "C=C"
    assert parse_molecule("[Na+].[Cl-]").canonical_smiles == "[Cl-].[Na+]"
    assert parse_molecule("[O][O]").canonical_smiles == "[O][O]"
    block = Chem.MolToMolBlock(Chem.MolFromSmiles("CCO"))
    assert parse_molecule(block).canonical_smiles == "CCO"
    assert parse_molecule("  CCO\n").smiles == "CCO"


def test_atoms_of_a_mol_block_keep_their_coordinates():
    mol = Chem.AddHs(Chem.MolFromSmiles("CC(=O)Nc1ccc(O)cc1"))
    from rdkit.Chem import rdDistGeom

    rdDistGeom.EmbedMolecule(mol, randomSeed=1)
    order = list(range(mol.GetNumAtoms()))
    random.Random(0).shuffle(order)
    mol = Chem.RenumberAtoms(mol, order)
    molecule = Molecule.from_molblock(Chem.MolToMolBlock(mol))
    conformer = embed_conformer(molecule)
    assert conformer.method == "given"
    given = mol.GetConformer().GetPositions()[list(molecule.source_atoms)]
    np.testing.assert_allclose(conformer.coordinates, given, atol=1e-3)  # four decimals in a block
    assert [mol.GetAtomWithIdx(i).GetSymbol() for i in molecule.source_atoms] == symbols(
        molecule.mol
    )
    assert_bond_lengths_are_bonds(featurize(molecule, conformer))
    assert symbols(parse_molecule(molecule.smiles).mol) == symbols(molecule.mol)


def test_a_drawing_is_not_a_conformer():
    from rdkit.Chem import rdDepictor

    mol = Chem.MolFromSmiles("CCO")
    rdDepictor.Compute2DCoords(mol)
    assert Molecule.from_molblock(Chem.MolToMolBlock(mol)).mol.GetNumConformers() == 0


def test_real_records_keep_order_and_place(shared_data):
    text = (shared_data / "gdb1k.sdf").read_text()
    blocks = [r.split("M  END")[0] + "M  END\n" for r in text.split("$$$$\n")[:200] if r.strip()]
    outcomes = [read(block, Molecule.from_molblock) for block in blocks]
    refused = [message for _, message in outcomes if message]
    assert all("valence" in message for message in refused)
    assert len(refused) < 10
    for molecule in (molecule for molecule, _ in outcomes if molecule):
        assert symbols(parse_molecule(molecule.smiles).mol) == symbols(molecule.mol)
        assert_bond_lengths_are_bonds(featurize(molecule, embed_conformer(molecule)))


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("", "empty", "SMILES is empty"),
        ("  \n", "empty", "SMILES is empty"),
        ("C1CC", "unclosed_ring", "SMILES 'C1CC' has an unclosed ring; fix it or drop the row"),
        ("CN(C)(C)(C)C", "valence", "valence of 5 at atom 1 (N)"),
        ("CC(", "syntax", "syntax error at character 3"),
        ("C)C", "parentheses", "unbalanced parentheses at character 2"),
        ("xyz", "syntax", "'xyz' has a syntax error at character 1"),
        ("c1cccc1", "aromaticity", "no Kekulé structure"),
        ("c1ccccc1c", "aromaticity", "aromatic atom outside a ring"),
        ("CC>>CO", "reaction", "is a reaction"),
        ("CCO CCN", "white_space", "white space at character 4"),
        ("CC\nCC", "white_space", "white space at character 3"),
        ("CC\tCC", "white_space", "white space"),
        ("C" * 20_000, "too_long", "20000 characters; the limit is 4000"),
        ("C" * (MAX_HEAVY_ATOMS + 1), "too_many_atoms", "513 atoms; the limit is 512"),
        ("C\ud800", "character", "U+D800 at character 2"),
        ("C\0", "character", "U+0000"),
        ("C😀", "character", "U+1F600 (GRINNING FACE)"),
        ("Ｃ", "character", "U+FF23"),
        ("\u202eCC", "character", "U+202E"),
        ("[C][Branch9][", "syntax", "syntax error"),
        ("[C][Nope]", "syntax", "cannot be read"),
        (None, "type", "NoneType"),
        (b"CC", "type", "bytes"),
    ],
)
def test_bad_text_is_one_clear_line(text, code, words):
    with pytest.raises(RejectedMolecule) as caught:
        parse_molecule(text)
    assert caught.value.code == code
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    str(caught.value).encode("utf-8")  # printable, whatever the input was


def test_three_hundred_atoms_work():
    molecule = parse_molecule("C" * 300)
    assert molecule.num_atoms == 300
    assert len(molecule.selfies.atoms) == 300


@pytest.mark.parametrize(
    "block",
    ["\n\n\n  0  0  0  0  0  0  0  0  0  0999 V2000\nM  END\n", "nonsense\nM  END\n", "\n\nV3000"],
)
def test_bad_mol_blocks_are_refused(block):
    with pytest.raises(MoleculeError):
        parse_molecule(block)


def test_what_selfies_cannot_write_is_an_absence_with_a_reason():
    molecule = parse_molecule("C*")
    assert molecule.selfies is None
    assert "selfies" in molecule.selfies_reason
    assert featurize(molecule, embed_conformer(molecule)).selfies is None


def test_reading_changes_no_global_state(capfd):
    before = selfies.get_semantic_constraints()
    with pytest.raises(MoleculeError):
        parse_molecule("C1CC")
    parse_molecule("[H].CC")  # RDKit warns about the hydrogen
    assert capfd.readouterr().err == ""  # captured, not printed
    assert selfies.get_semantic_constraints() == before
    Chem.MolFromSmiles("C1CC")
    assert "unclosed ring" in capfd.readouterr().err  # the logger is still on


FRAGMENTS = st.sampled_from(
    [*"CNOPSFclnos()[]=#/\\@+-.%123456789H* \n\0", "Cl", "[nH]", "é", "[C]"]
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    seed=st.sampled_from([*ALIGNED, "[C][=C][Branch1][C][O][Ring1][Ring1]"]),
    edits=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 3), FRAGMENTS), max_size=6),
)
def test_mutated_text_is_a_molecule_or_a_molecule_error(seed, edits):
    text = seed
    for position, length, fragment in edits:
        text = text[:position] + fragment + text[position + length :]
    molecule, message = read(text)
    if molecule is None:
        assert "\n" not in message
        return
    assert 0 < molecule.num_atoms <= MAX_HEAVY_ATOMS
    assert symbols(parse_molecule(molecule.smiles).mol) == symbols(molecule.mol)
    if molecule.selfies is not None:
        assert_tokens_are_atoms(molecule)


ODD = st.sampled_from(
    [*"CNO[]()=1%@.\\/ \t\r\n\0\x7f", "é", "Ω", "\u2028", "\ufeff", "😀", "\udcff"]
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(text=st.lists(ODD, max_size=40).map("".join))
def test_odd_text_is_a_molecule_or_a_molecule_error(text):
    _, message = read(text)
    (message or "").encode("utf-8")  # printable even for a lone surrogate


TOKENS = st.sampled_from(
    [
        *sorted(selfies.get_semantic_robust_alphabet()),
        *("[Branch3]", "[Ring3]", "[nop]", "[epsilon]", "[13C]", "[CH9]", "[Xx]", "[]", "[=]", "."),
        *("[C@@H1]", "[#300]", "[99999C]", "[C+999]", "[", "]", "[[C]", "[é]", "[C]x"),
    ]
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(tokens=st.lists(TOKENS, max_size=40))
def test_any_row_of_selfies_tokens_is_a_molecule_or_a_molecule_error(tokens):
    text = "".join(tokens)
    molecule, message = read(text, Molecule.from_selfies)
    if molecule is None:
        assert "\n" not in message
        return
    assert 0 < molecule.num_atoms <= MAX_HEAVY_ATOMS
    if molecule.selfies is not None:
        assert_tokens_are_atoms(molecule)


MAPPED = [
    ("[CH3:7][CH2:2][NH2:4]", "CCN"),
    ("[CH3:1][C@@H:2]([NH2:3])[C:4](=[O:5])[OH:6]", "C[C@@H](N)C(=O)O"),
    ("[CH3:9]/[CH:1]=[CH:2]/[CH3:3]", "C/C=C/C"),
    ("[CH3:1][C@H](F)[CH3:2]", "CC(C)F"),  # chiral by its maps alone
    ("[cH:1]1[cH:2]cccc1[H:5]", "c1ccccc1"),
    ("[*:1]CC", "*CC"),
]


@pytest.mark.parametrize(("mapped", "plain"), MAPPED)
def test_equal_molecules_are_equal_whatever_their_atom_maps(mapped, plain):
    one, other = parse_molecule(mapped), parse_molecule(plain)
    assert one.canonical_smiles == other.canonical_smiles
    assert symbols(parse_molecule(one.smiles).mol) == symbols(one.mol)
    again = Molecule.from_mol(Chem.MolFromSmiles(mapped))
    assert again.canonical_smiles == other.canonical_smiles
    assert ":" not in again.smiles


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("CCC |^1:0|", "[CH2]CC"),
        ("CC=CC |t:1|", "C/C=C/C"),
        ("*CO |$R2;;$|", "*CO"),
        ("CCN |(0,0,;1.3,.7,;2.6,0,)|", "CCN"),
        ("C[C@H](F)Cl |a:1|", "C[C@H](F)Cl"),
    ],
)
def test_a_cxsmiles_is_read_with_its_extension(text, canonical):
    molecule = parse_molecule(text)
    assert molecule.canonical_smiles == Chem.CanonSmiles(canonical)
    assert molecule.text == text
    assert symbols(parse_molecule(molecule.smiles).mol) == symbols(molecule.mol)
    assert parse_molecule(molecule.smiles).canonical_smiles == molecule.canonical_smiles


@pytest.mark.parametrize(
    "text",
    [
        "C[C@H](N)Br |&1:1|",
        "C[C@H](N)Br |o1:1|",
        "*CC |$Q_e;;$|",
        "CCCO |Sg:n:1,2:4:ht|",
        "C*.c1ccccc1 |m:1:2.3|",
        "CCO |nonsense|",
        "CCO |",
    ],
)
def test_a_cxsmiles_of_several_molecules_is_refused_by_name(text):
    with pytest.raises(RejectedMolecule, match="CXSMILES extension") as caught:
        parse_molecule(text)
    assert caught.value.code == "cxsmiles"


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("CCO\n", ("CCO", "")),
        ("CCO ethanol, absolute\n", ("CCO", "ethanol, absolute")),
        ("CC |^1:0|\tethyl |x|\n", ("CC |^1:0|", "ethyl |x|")),
        ("   \n", ("", "")),
    ],
)
def test_a_line_of_a_smi_file_is_a_molecule_and_a_name(line, parts):
    assert split_smiles_line(line) == parts
