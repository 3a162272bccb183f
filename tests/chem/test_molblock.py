"""Mol blocks: what is read, and what is wrong with the others in RDKit's words, with the line."""

import pytest
from rdkit import Chem

from collamo.chem.molecule import Molecule, RejectedMolecule

BLOCK = """acetaldehyde
  by hand

  3  2  0  0  0  0  0  0  0  0999 V2000
   -1.2000    0.1000    0.0000 C   0  0
    0.2000    0.4000    0.0000 C   0  0
    0.9000    1.5000    0.0000 O   0  0
  1  2  1  0
  2  3  2  0
M  END
"""
V3000 = Chem.MolToV3KMolBlock(Chem.MolFromMolBlock(BLOCK))


@pytest.mark.parametrize("before", ["", "\n", "\n\n  \n", "\r\n"])
@pytest.mark.parametrize("block", [BLOCK, V3000, BLOCK.replace("acetaldehyde", "")])
def test_blank_lines_before_a_record_are_skipped(before, block):
    assert Molecule.from_molblock(before + block).canonical_smiles == "CC=O"


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("    0.9000    1.5000", "    0.9000  1é5000", "line 7: "),
        ("    0.2000    0.4000", "       nan    0.4000", "line 6: Cannot process coordinates"),
        (" O   0", " Qq  0", "line 7: Element 'Qq' not found"),
        ("  2  3  2  0", "  2  7  2  0", "line 9: it names an atom that is not there"),
        ("  2  3  2  0", "  2  2  2  0", "line 9: attempt to add self-bond"),
        ("  2  3  2  0", "  1  2  2  0", "line 9: bond already exists"),
        ("  3  2  0", "  3  b  0", "line 4: Cannot convert ' b' to unsigned int"),
        ("  3  2  0", "  4  2  0", "line 8: Atom line too short"),
        ("M  END", "M  CHG  1   8   1\nM  END", "line 10: it names an atom that is not there"),
        ("V2000", "V2500", "no counts line|line 4: Unsupported CTAB version: 'V2500'"),
    ],
)
def test_a_bad_block_says_the_line_and_the_cause(before, after, words):
    assert before in BLOCK
    message = refusal(BLOCK.replace(before, after, 1))
    assert any(word in message for word in words.split("|"))


def test_lines_are_counted_from_the_start_of_the_record():
    assert "line 9: Element 'Qq'" in refusal("\n\n" + BLOCK.replace(" O   0", " Qq  0"))


def test_what_ends_early_or_is_something_else_says_so():
    assert "EOF hit while reading bonds" in refusal(BLOCK.partition("  2  3  2")[0])
    assert "has no counts line" in refusal("a letter\nto somebody\nM  END\n")
    assert "line 10: Element 'Qq' not found" in refusal(V3000.replace(" O ", " Qq "))


def refusal(block):
    with pytest.raises(RejectedMolecule) as caught:
        Molecule.from_molblock(block)
    message = str(caught.value)
    assert "\n" not in message
    for leak in ("Violation", "/", "::", "Stacktrace", "->"):  # C++ text and paths of the build
        assert leak not in message
    return message
