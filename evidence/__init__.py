"""The paper's claims, measured on real data: `python -m evidence run`, then `report`.

Scripts beside the packages, not part of them. A claim is a file here, a folder under ``results/``
and a section of ``docs/evidence.md``.
"""
