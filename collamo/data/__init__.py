"""From a source of molecules to shards, questions and batches.

Import from the modules: `prepare` writes a folder, `prepared` reads it, `batch` makes tensors of it
and alone loads torch.
"""
