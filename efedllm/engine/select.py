"""The engine a published model wants. Importing this loads torch."""

from __future__ import annotations

from pathlib import Path

from efedllm.engine.base import other_model
from efedllm.engine.encoder import EncoderEngine
from efedllm.engine.exact.shard import ExactShardEngine
from efedllm.engine.half import HalfShardEngine
from efedllm.engine.protocol import Executor
from efedllm.engine.shard import ShardEngine
from efedllm.engine.tiers import TierReport
from efedllm.errors import ModelError
from efedllm.models.families import FAMILIES, read_config
from efedllm.models.manifest import Manifest


def load_executor(
    directory: Path,
    lo: int,
    hi: int,
    *,
    threads: int = 1,
    ram: int | None = None,
    half: bool = False,
    device: str = "cpu",
) -> Executor:
    """Layers [lo, hi) of the published model in `directory`, on the calling thread, which must be the one to use them.

    `ram`: bytes for weights, caches and activations; None holds everything in memory. `half`: compute in bfloat16.
    `device`: "cuda" computes a causal float model on a GPU, whose memory is then what `ram` bounds.
    Raises ModelError like `ShardEngine.load`, "bad-manifest" when config.json describes another model, "ram-exceeded"
    for an encoder that is larger than `ram`, as it is always held whole, "no-bfloat16" where `half` cannot be, and
    "no-device" where `device` is missing or cannot compute the model.
    """
    manifest = Manifest.load(directory)
    _check_config(directory, manifest)
    family = FAMILIES.get(manifest.model_type)
    encodes = family is not None and family.is_encoder
    if device != "cpu" and (half or encodes or manifest.profile == "exact"):
        raise ModelError(
            "no-device", "Exact models, encoders and bfloat16 are computed on the CPU.", "Leave --device out."
        )
    if half:
        return _half(directory, manifest, lo, hi, threads, ram)
    if manifest.profile == "exact":
        return ExactShardEngine.load(directory, lo, hi, threads=threads, ram=ram)
    if encodes:
        encoder = EncoderEngine.load(directory, lo, hi, threads=threads)
        if ram is not None and encoder.weight_bytes > ram:
            raise ModelError(
                "ram-exceeded",
                f"An encoder is held whole, and these layers take {encoder.weight_bytes} bytes.",
                "Give more with --ram, or serve fewer layers.",
            )
        return encoder
    return ShardEngine.load(directory, lo, hi, threads=threads, ram=ram, device=device)


def _check_config(directory: Path, manifest: Manifest) -> None:
    """Before anything is built by it: a published config.json may name any number of layers."""
    config = read_config(directory)
    said = (manifest.layers, manifest.hidden, manifest.vocab)
    if said != (config.num_hidden_layers, config.hidden_size, config.vocab_size):
        raise other_model(directory)


def _half(directory: Path, manifest: Manifest, lo: int, hi: int, threads: int, ram: int | None) -> Executor:
    family = FAMILIES.get(manifest.model_type)
    if manifest.profile == "exact" or ram is not None or (family is not None and family.is_encoder):
        raise ModelError(
            "no-bfloat16",
            "Only causal float models that fit in memory are computed in bfloat16.",
            "Leave --compute bfloat16 out.",
        )
    return HalfShardEngine.load_half(directory, lo, hi, threads=threads)


def tier_report(executor: Executor) -> TierReport | None:
    """How the layers of an executor with a budget lie in memory; None without one."""
    return executor.tiers if isinstance(executor, ShardEngine | ExactShardEngine) else None
