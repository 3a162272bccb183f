"""All claims, in the order in which they run and are reported."""

from evidence import conformers, language_model, relations
from evidence.claim import Claim

CLAIMS: dict[str, Claim] = {
    claim.name: claim for claim in (relations.CLAIM, conformers.CLAIM, language_model.CLAIM)
}
