"""The engine a published model wants. Importing this loads torch."""

from __future__ import annotations

from pathlib import Path

from efedllm.engine.encoder import EncoderEngine
from efedllm.engine.exact.shard import ExactShardEngine
from efedllm.engine.protocol import Executor
from efedllm.engine.shard import ShardEngine
from efedllm.engine.tiers import TierReport
from efedllm.errors import ModelError
from efedllm.models.families import FAMILIES
from efedllm.models.manifest import Manifest


def load_executor(directory: Path, lo: int, hi: int, *, threads: int = 1, ram: int | None = None) -> Executor:
    """Layers [lo, hi) of the published model in `directory`, on the calling thread, which must be the one to use them.

    `ram`: bytes for weights, caches and activations; None holds everything in memory. Raises ModelError like
    `ShardEngine.load`, and "ram-exceeded" for an encoder that is larger than `ram`: it is always held whole.
    """
    manifest = Manifest.load(directory)
    if manifest.profile == "exact":
        return ExactShardEngine.load(directory, lo, hi, threads=threads, ram=ram)
    family = FAMILIES.get(manifest.model_type)
    if family is not None and family.is_encoder:
        encoder = EncoderEngine.load(directory, lo, hi, threads=threads)
        if ram is not None and encoder.weight_bytes > ram:
            raise ModelError(
                "ram-exceeded",
                f"An encoder is held whole, and these layers take {encoder.weight_bytes} bytes.",
                "Give more with --ram, or serve fewer layers.",
            )
        return encoder
    return ShardEngine.load(directory, lo, hi, threads=threads, ram=ram)


def tier_report(executor: Executor) -> TierReport | None:
    """How the layers of an executor with a budget lie in memory; None without one."""
    return executor.tiers if isinstance(executor, ShardEngine | ExactShardEngine) else None
