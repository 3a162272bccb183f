"""All claims, in the order in which they run and are reported."""

from evidence import (
    collaboration,
    conformers,
    language_model,
    modality_dropout,
    relations,
    topology,
)
from evidence.claim import Claim

CLAIMS: dict[str, Claim] = {
    claim.name: claim
    for claim in (
        relations.CLAIM,
        conformers.CLAIM,
        topology.CLAIM,
        collaboration.CLAIM,
        modality_dropout.CLAIM,
        language_model.CLAIM,
    )
}
