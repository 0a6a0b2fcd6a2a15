"""The engine a published model wants. Importing this loads torch."""

from __future__ import annotations

from pathlib import Path

from efedllm.engine.encoder import EncoderEngine
from efedllm.engine.exact.shard import ExactShardEngine
from efedllm.engine.protocol import Executor
from efedllm.engine.shard import ShardEngine
from efedllm.models.families import FAMILIES
from efedllm.models.manifest import Manifest


def load_executor(directory: Path, lo: int, hi: int, *, threads: int = 1) -> Executor:
    """Layers [lo, hi) of the published model in `directory`, on the calling thread, which must be the one to use them.

    Raises ModelError like `ShardEngine.load`.
    """
    manifest = Manifest.load(directory)
    if manifest.profile == "exact":
        return ExactShardEngine.load(directory, lo, hi, threads=threads)
    family = FAMILIES.get(manifest.model_type)
    if family is not None and family.is_encoder:
        return EncoderEngine.load(directory, lo, hi, threads=threads)
    return ShardEngine.load(directory, lo, hi, threads=threads)
