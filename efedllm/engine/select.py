"""Choosing and loading the engine of a published model.

Importing this loads torch. Only a float model or an encoder loads the model code of transformers, which takes seconds
and some 100 MB: a node of an exact model does without it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from efedllm.engine.base import RangeEngine, other_model
from efedllm.engine.compare import largest_deviation, same_bits
from efedllm.engine.exact.products import inexact
from efedllm.engine.exact.shard import ExactShardEngine
from efedllm.engine.memory.layer_streaming import TierReport
from efedllm.engine.protocol import Executor
from efedllm.errors import ModelError
from efedllm.models.exact_config import read_exact_config
from efedllm.models.families import FAMILIES, read_config
from efedllm.models.manifest import Manifest
from efedllm.models.tolerance import LEAST_TAU

if TYPE_CHECKING:
    from efedllm.engine.shard import ShardEngine


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
    `device`: "cuda" computes a causal model on a GPU, whose memory is then what `ram` bounds; one layer is computed on
    the CPU as well, and must have the same bits, or stray by less than half of what any verifier accepts.
    Raises ModelError like `ShardEngine.load`, "bad-manifest" when config.json describes another model, "ram-exceeded"
    for an encoder that is larger than `ram`, as it is always held whole, "no-bfloat16" where `half` cannot be,
    "no-device" where `device` is missing or cannot compute the model, and "inexact-device" where it computes otherwise.
    """
    manifest = Manifest.load(directory)
    _check_config(directory, manifest)
    encodes = _encodes(manifest)
    if device != "cpu" and (half or encodes):
        raise ModelError("no-device", "Encoders and bfloat16 are computed on the CPU.", "Leave --device out.")
    if half:
        return _half(directory, manifest, lo, hi, threads, ram)
    if manifest.profile == "exact":
        _compare(ExactShardEngine, directory, hi, device)
        return ExactShardEngine.load(directory, lo, hi, threads=threads, ram=ram, device=device)
    if encodes:
        from efedllm.engine.encoder import EncoderEngine

        encoder = EncoderEngine.load(directory, lo, hi, threads=threads)
        if ram is not None and encoder.weight_bytes > ram:
            raise ModelError(
                "ram-exceeded",
                f"An encoder is held whole, and these layers take {encoder.weight_bytes} bytes.",
                "Give more with --ram, or serve fewer layers.",
            )
        return encoder
    from efedllm.engine.shard import ShardEngine

    _compare(ShardEngine, directory, hi, device)
    return ShardEngine.load(directory, lo, hi, threads=threads, ram=ram, device=device)


def device_for(directory: Path, device: str) -> str:
    """`device`, or "cpu" for a published model that is computed nowhere else. Raises ModelError for a bad manifest."""
    return "cpu" if _encodes(Manifest.load(directory)) else device


def _encodes(manifest: Manifest) -> bool:
    family = FAMILIES.get(manifest.model_type)
    return family is not None and family.is_encoder


def _check_config(directory: Path, manifest: Manifest) -> None:
    """Before anything is built by it: a published config.json may name any number of layers."""
    config = read_exact_config(directory) if manifest.profile == "exact" else read_config(directory)
    said = (manifest.layers, manifest.hidden, manifest.vocab)
    if said != (config.num_hidden_layers, config.hidden_size, config.vocab_size):
        raise other_model(directory)


def _compare(kind: type[ShardEngine] | type[ExactShardEngine], directory: Path, hi: int, device: str) -> None:
    """Raises ModelError "inexact-device" unless `device` computes layer hi - 1 as the CPU does: settings of the
    environment can make products of a GPU much coarser than float32."""
    if device == "cpu":
        return
    far, near = (kind.load(directory, hi - 1, hi, device=where) for where in (device, "cpu"))
    if kind is ExactShardEngine:
        if not same_bits(near, far):
            raise inexact(device, "a layer of this model has other bits than on the CPU")
        return
    strays = largest_deviation(near, far)
    if strays > LEAST_TAU / 2:
        raise inexact(device, f"a layer of this model strays by {strays:.1g} from the CPU's")


def _half(directory: Path, manifest: Manifest, lo: int, hi: int, threads: int, ram: int | None) -> Executor:
    if manifest.profile == "exact" or ram is not None or _encodes(manifest):
        raise ModelError(
            "no-bfloat16",
            "Only causal float models that fit in memory are computed in bfloat16.",
            "Leave --compute bfloat16 out.",
        )
    from efedllm.engine.half import HalfShardEngine

    return HalfShardEngine.load_half(directory, lo, hi, threads=threads)


def tier_report(executor: Executor) -> TierReport | None:
    """How the layers of an executor with a budget lie in memory; None without one."""
    return executor.tiers if isinstance(executor, RangeEngine) else None
