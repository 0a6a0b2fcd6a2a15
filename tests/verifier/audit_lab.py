"""A small real model, routes that run it the way nodes do, and ways to tamper with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from efedllm.checkout import project_root
from efedllm.commitments.boundary import BoundaryTree
from efedllm.commitments.canonical import WireDtype, decode, encode
from efedllm.commitments.hashing import ZERO32
from efedllm.commitments.messages import Domain, HopCommit, JobSpec, ids_hash
from efedllm.compression import CompressOptions, compress
from efedllm.engine.linear import DenseLinear, LowRankLinear
from efedllm.engine.protocol import Executor, StepItem
from efedllm.engine.shard import ShardEngine
from efedllm.sampling.float import SamplingSpec, sample

BUNDLED = project_root() / "models" / "pylib-7m"
DOMAIN = Domain(1337, "0x" + "11" * 20)
RANGES = ((0, 3), (3, 6), (6, 8))
PROMPT = tuple((17 * i * i + 5 * i + 3) % 4096 for i in range(40))

Bits = NDArray[Any]


def publish_float32(work: Path) -> Path:
    """The bundled model with float32 weights that bfloat16 cannot hold, low-rank, published."""
    source = work / "float32"
    source.mkdir()
    for path in BUNDLED.iterdir():
        if path.suffix == ".json":
            (source / path.name).write_bytes(path.read_bytes())
    config = (source / "config.json").read_text().replace('"bfloat16"', '"float32"')
    (source / "config.json").write_text(config)
    generator = torch.Generator().manual_seed(7)
    tensors = {
        name: tensor.float() * (1 + 1e-3 * torch.randn(tensor.shape, generator=generator))
        for name, tensor in load_file(BUNDLED / "model.safetensors").items()
    }
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    out = work / "published"
    compress(CompressOptions(model=str(source), out=out, keep=0.5))
    return out


def load(published: Path, lo: int, hi: int, threads: int = 1) -> ShardEngine:
    return ShardEngine.load(published, lo, hi, threads=threads)


def tamper(engine: ShardEngine, change: Callable[[torch.Tensor], torch.Tensor]) -> ShardEngine:
    """Replace every linear weight of the layers by `change` of it."""
    for layer in engine._modules.layers:
        for module in layer.modules():
            names = {LowRankLinear: ("u", "v"), DenseLinear: ("weight",)}.get(type(module), ())
            for name in names:
                setattr(module, name, change(getattr(module, name).clone()))
    return engine


def noisy(scale: float) -> Callable[[torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(11)
    return lambda weight: weight * (1 + scale * torch.randn(weight.shape, generator=generator))


def as_bfloat16(weight: torch.Tensor) -> torch.Tensor:
    return weight.bfloat16().float()


def as_int8(weight: torch.Tensor) -> torch.Tensor:
    scale = weight.abs().amax(dim=1, keepdim=True) / 127
    return (weight / scale).round() * scale


def truncated(engine: ShardEngine, share: float) -> ShardEngine:
    """Keep only the first `share` of every factor's rank."""
    for layer in engine._modules.layers:
        for module in layer.modules():
            if isinstance(module, LowRankLinear):
                rank = int(module.u.shape[1] * share)
                for name, factor in (("u", module.u[:, :rank]), ("v", module.v[:rank])):
                    setattr(module, name, factor.contiguous())
    return engine


def skipping(engine: ShardEngine, layer: int) -> ShardEngine:
    """Leave one layer of the range out."""
    layers = engine._modules.layers
    kept = (*layers[:layer], *layers[layer + 1 :])
    engine._modules = replace(engine._modules, layers=kept)
    return engine


@dataclass(frozen=True)
class Trace:
    """Canonical bytes of every boundary of one job, and the tokens it emitted."""

    boundaries: tuple[bytes, ...]
    emitted: tuple[int, ...]


def decode_route(
    engines: Sequence[Executor],
    prompt: Sequence[int],
    new_tokens: int,
    wire: WireDtype = WireDtype.F32,
    sampling: SamplingSpec | None = None,
    choose: Callable[[Bits, SamplingSpec, int], int] = sample,
) -> Trace:
    """Generate as nodes do: prefill once, then one position at a time, each hop fed from decoded wire bytes."""
    spec = sampling or SamplingSpec(0, 0, 1_000_000, bytes(32))
    sequences = [engine.new_sequence() for engine in engines]
    rows: list[list[bytes]] = [[] for _ in range(len(engines) + 1)]
    emitted: list[int] = []
    feed = np.asarray(prompt, dtype=np.int32)
    length = 0
    while len(emitted) < new_tokens:
        rows[0].append(encode(feed.reshape(-1, 1), WireDtype.I32))
        states: Bits = feed
        for hop, (engine, sequence) in enumerate(zip(engines, sequences, strict=True)):
            payload = encode(engine.step([StepItem(sequence, states)])[0], wire)
            rows[hop + 1].append(payload)
            states = decode(payload, wire, engine.hidden)
        length += len(feed)
        emitted.append(choose(engines[-1].logits(np.ascontiguousarray(states[-1:]))[0], spec, length))
        feed = np.asarray(emitted[-1:], dtype=np.int32)
    return Trace(tuple(b"".join(parts) for parts in rows), tuple(emitted))


def job_spec(trace_prompt: Sequence[int], new_tokens: int, wire: WireDtype, sampling: SamplingSpec) -> JobSpec:
    return JobSpec(
        session_id=bytes(31) + b"\x01",
        job_seq=0,
        prompt_hash=ids_hash(trace_prompt),
        prompt_tokens=len(trace_prompt),
        max_new_tokens=new_tokens,
        temperature_milli=sampling.temperature_milli,
        top_k=sampling.top_k,
        top_p_ppm=sampling.top_p_ppm,
        seed=sampling.seed,
        wire_dtype=int(wire),
    )


def hop_commit(
    spec: JobSpec,
    hop: int,
    hops: int,
    layers: tuple[int, int],
    trace: Trace,
    hidden: int,
    *,
    model_id: bytes = ZERO32,
    shard_root: bytes = ZERO32,
    prev: bytes = ZERO32,
    epoch: int = 1,
    profile: int = 0,
    aux_root: bytes = ZERO32,
    domain: Domain = DOMAIN,
) -> HopCommit:
    """The commitment of one hop over what `trace` holds."""
    wire = WireDtype(spec.wire_dtype)

    def root(boundary: int) -> bytes:
        dtype, dim = (WireDtype.I32, 1) if boundary == 0 else (wire, hidden)
        tree = BoundaryTree(spec.job_id, boundary, dtype, dim)
        tree.append(trace.boundaries[boundary])
        return tree.root()

    return HopCommit(
        job_id=spec.job_id,
        spec_hash=spec.digest(domain),
        hop=hop,
        lo=layers[0],
        hi=layers[1],
        profile=profile,
        wire_dtype=spec.wire_dtype,
        tokens=len(trace.boundaries[0]) // 4,
        model_id=model_id,
        shard_root=shard_root,
        in_root=root(hop),
        out_root=root(hop + 1),
        tokens_hash=ids_hash(trace.emitted) if hop == hops - 1 else ZERO32,
        aux_root=aux_root,
        prev_commit=prev,
        epoch=epoch,
    )
