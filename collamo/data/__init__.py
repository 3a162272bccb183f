"""From a source of molecules to shards, questions and batches.

Import from the modules (`collamo.data.sources`, `prepare`, `shards`, `tasks`, `batch`): torch is
loaded by `batch` alone.
"""
