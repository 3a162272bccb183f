"""Molecules: one RDKit Mol sets the atom order of the SELFIES, the graph and the conformer.

Import from the modules (`collamo.chem.molecule`, `features`, `conformer`, `motifs`, `draw`); RDKit
is loaded by them, not here.
"""
