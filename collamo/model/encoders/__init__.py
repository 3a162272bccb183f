"""The three molecule encoders: SELFIES (1D), GIN (2D) and Uni-Mol (3D)."""

from collamo.model.encoders.gin import GinEncoder, gin_inputs
from collamo.model.encoders.selfies import SelfiesEncoder
from collamo.model.encoders.unimol import UNIMOL_DICTIONARY, UniMolEncoder, unimol_inputs

__all__ = [
    "UNIMOL_DICTIONARY",
    "GinEncoder",
    "SelfiesEncoder",
    "UniMolEncoder",
    "gin_inputs",
    "unimol_inputs",
]
