"""Published models whose every byte follows from sha256, and hashes of what an exact engine makes of them."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from efedllm.commitments.canonical import WireDtype, decode, encode
from efedllm.compression.encode import Encoded, encode_dense, encode_factors, encode_packed
from efedllm.compression.lowbit import Factors, LowBit
from efedllm.engine.exact.products import Kernel
from efedllm.engine.exact.shard import ExactShardEngine
from efedllm.engine.protocol import Float32, Int32, StepItem
from efedllm.engine.protocol import Sequence as TokenSequence
from efedllm.models.linear import read_linear, read_vector
from efedllm.models.manifest import FileInfo, Manifest, Quant, TensorInfo, part_names, weights_root
from efedllm.models.packing import group_count
from efedllm.models.skeleton import build_skeleton, is_matrix, linear_shape
from efedllm.models.tensorfile import Part, TensorFile, write_tensor_file
from efedllm_bench.memory.synthetic import place_of, publish_entries
from tests.model_fixtures import family_config

Form = int | str | None
"""How the matrices of the layers are published: int8 factors of a rank; None: int8; "packed": all widths, with and
without factors; "mixed": all of these beside each other, and factors that share a v."""

MODELS: tuple[tuple[str, Form], ...] = (
    *(("llama", None), ("llama-tied", 12), ("mistral", 12), ("qwen2", None), ("qwen2", 12), ("qwen3", None)),
    *(("llama", "packed"), ("qwen2", "packed"), ("qwen3", "mixed"), ("llama-tied", "mixed")),
    *(("gpt2", None), ("gpt2", 12), ("gpt2", "packed"), ("gpt2", "mixed")),
)

PARTS = (1, 2, 4, 8)


def stream(name: str, count: int) -> np.ndarray[Any, np.dtype[np.int16]]:
    """`count` int16 from sha256(name | counter): torch's generators differ between builds."""
    blocks = [hashlib.sha256(f"{name}|{i}".encode()).digest() for i in range(-(-count // 16))]
    return np.frombuffer(b"".join(blocks), dtype="<i2")[:count].astype(np.int16)


def stream_ids(name: str, count: int, vocab: int = 96) -> Int32:
    return (stream(name, count).astype(np.int32) & 0x7FFF) % np.int32(vocab)


def _tensor(name: str, shape: Sequence[int], center: float = 0.0, width: float = 0.25) -> Tensor:
    """float32, uniform around `center`, `width` a power of two."""
    values = torch.from_numpy(stream(name, int(np.prod(shape))).astype(np.float32))
    return (values * (width / 32768) + center).view(*shape)


def publish_counters(directory: Path, family: str, form: Form) -> Manifest:
    """Write the tiny model of `family`, every number of it from counters: no LAPACK, no torch.randn."""
    skeleton = build_skeleton(family_config(family), "eager")
    files: dict[str, list[Encoded]] = {}
    for entry in _encoded(skeleton, form):
        files.setdefault(entry.info.file, []).append(entry)
    quant: Quant = "packed" if isinstance(form, str) else "int8"
    return publish_entries(directory, skeleton, files.values(), quant=quant, created_by="test")


def _encoded(skeleton: Any, form: Form) -> Iterator[Encoded]:
    family = skeleton.family
    matrices = 0
    for name, parameter in skeleton.model.named_parameters():
        layer, file = place_of(skeleton, name)
        if parameter.ndim == 1:
            center = 0.0 if name.endswith("bias") else 1.0
            yield encode_dense(name, layer, file, _tensor(name, tuple(parameter.shape), center))
            continue
        module = skeleton.model.get_submodule(name.rpartition(".")[0])
        shape = linear_shape(module) if is_matrix(module) else (parameter.shape[0], parameter.shape[1])
        if not file.startswith("layer") or form is None:
            yield encode_dense(name, layer, file, _tensor(name, shape), int8=name != f"{family.positions}.weight")
        else:
            yield _matrix(name, layer, file, shape, form, matrices)
            matrices += 1


def _matrix(name: str, layer: int, file: str, shape: tuple[int, int], form: Form, index: int) -> Encoded:
    if isinstance(form, int):
        return _factors(name, layer, file, shape, form)
    if form == "mixed":
        stacked = (".q_proj.", ".k_proj.", ".v_proj.") if layer % 2 else (".gate_proj.", ".up_proj.")
        if any(part in name for part in stacked):
            return _stacked(name, name.replace(next(p for p in stacked if p in name), stacked[0]), layer, file, shape)
        if index % 4 < 2:
            rank = index % 4 * 7
            return (
                _factors(name, layer, file, shape, rank)
                if rank
                else encode_dense(name, layer, file, _tensor(name, shape), int8=True)
            )
    return encode_packed(name, layer, file, _low_bit(name, shape, 2 + index % 5, (7, 8, 16, 64)[index % 4], index % 3))


def _factors(name: str, layer: int, file: str, shape: tuple[int, int], rank: int, v: str = "") -> Encoded:
    u = _tensor(f"{name}.u", (shape[0], rank), width=0.5)
    return encode_factors(
        name, layer, file, u, _tensor(f"{v or name}.v", (rank, shape[1]), width=0.5), torch.float32, int8=True
    )


def _stacked(name: str, owner: str, layer: int, file: str, shape: tuple[int, int]) -> Encoded:
    """Factors whose v is that of `owner`."""
    alone = _factors(name, layer, file, shape, 10, owner)
    parts = part_names(name, "lowrank", "int8", 10, owner)
    info = TensorInfo(**alone.info.model_dump() | {"stack": owner, "parts": parts})
    return Encoded(info, {new: alone.parts[old] for new, old in zip(parts, alone.info.parts, strict=True)})


def _low_bit(name: str, shape: tuple[int, int], bits: int, group: int, factors: int) -> LowBit:
    rows, cols = shape
    half = 1 << (bits - 1)
    q = torch.from_numpy(stream(f"{name}.q", rows * cols) % (2 * half) - half).to(torch.int8).view(shape)
    groups = group_count(cols, group)
    size = stream(f"{name}.mult", rows * groups).astype(np.int32) % 127 + 1
    mult = torch.from_numpy(size * np.where(stream(f"{name}.sign", rows * groups) < 0, -1, 1)).to(torch.int8)
    scale = _tensor(f"{name}.scale", (rows,), 0.5) * (0.5 / (half * 128))
    pair = None
    if factors:
        rank = 6 * factors
        u, v = (
            torch.from_numpy(stream(f"{name}.{part}", count)).to(torch.int8)
            for part, count in (("u", rows * rank), ("v", rank * cols))
        )
        pair = Factors(u.view(rows, rank), v.view(rank, cols), _tensor(f"{name}.s", (rank,), 0.5) * 2.0**-17)
    return LowBit(q, mult.view(rows, groups), scale, bits, group, pair)


def publish_repacked(source: Path, directory: Path) -> Manifest:
    """The int8 model in `source`, its layers rounded to 4 bits in groups of 32 by element-wise steps alone: real
    weights whose bytes are the same everywhere."""
    manifest = Manifest.load(source)
    shutil.copytree(source, directory)
    entries: list[Encoded] = []
    for tensor in manifest.tensors:
        if not tensor.file.startswith("layer"):
            continue
        with TensorFile(source / tensor.file) as file:
            if tensor.cols == 1:
                values = torch.from_numpy(read_vector(file, tensor).copy())
                entries.append(encode_dense(tensor.name, tensor.layer, tensor.file, values))
            else:
                base = read_linear(file, tensor).base
                assert base is not None
                assert base.scales is not None
                low = _rounded(torch.from_numpy(base.values * base.scales.astype(np.float64)[:, None]))
                entries.append(encode_packed(tensor.name, tensor.layer, tensor.file, low))
    files: dict[str, dict[str, Part]] = {}
    for entry in entries:
        files.setdefault(entry.info.file, {}).update(entry.parts)
    for name, parts_of_file in files.items():
        write_tensor_file(directory / name, parts_of_file)
    new = {entry.info.name: entry.info for entry in entries}
    tensors = tuple(new.get(t.name, t) for t in manifest.tensors)
    infos = tuple(FileInfo.of(directory / f.name) for f in manifest.files)
    changes = {
        "quant": "packed",
        "tensors": tensors,
        "files": infos,
        "weights_root": "0x" + weights_root(tensors, infos).hex(),
    }
    repacked = Manifest(**dict(manifest) | changes)
    repacked.save(directory)
    return repacked


def _rounded(w: Tensor, group: int = 32) -> LowBit:
    rows, cols = w.shape
    sizes = w.abs().view(rows, cols // group, group).amax(dim=2)
    scale = (sizes.amax(dim=1) / (127 * 7.5)).float()
    mult = (sizes / (scale.double().unsqueeze(1) * 7.5)).round().clamp(1, 127)
    steps = (mult * scale.double().unsqueeze(1)).repeat_interleave(group, dim=1)
    q = (w / steps).round().clamp(-8, 7).to(torch.int8)
    return LowBit(q, mult.to(torch.int8), scale, 4, group)


def load_parts(
    directory: Path, parts: int, kernel: Kernel | None = None, threads: int = 1, device: str = "cpu"
) -> list[ExactShardEngine]:
    layers = Manifest.load(directory).layers
    bounds = [layers * i // parts for i in range(parts + 1)]
    return [
        ExactShardEngine.load(directory, lo, hi, kernel=kernel, threads=threads, device=device)
        for lo, hi in pairwise(bounds)
    ]


class ExactPipeline:
    """Engines joined by the canonical bytes that nodes hash and send."""

    def __init__(self, engines: list[ExactShardEngine]) -> None:
        self._engines = engines

    def new(self) -> list[TokenSequence]:
        return [engine.new_sequence() for engine in self._engines]

    def feed(self, sequences: list[list[TokenSequence]], tokens: list[Int32]) -> list[bytes]:
        """One ragged step of every sequence -> canonical bytes of its last states and logits."""
        data: list[Any] = list(tokens)
        for place, engine in enumerate(self._engines):
            batch = [StepItem(s[place], x) for s, x in zip(sequences, data, strict=True)]
            data = [over_the_wire(states) for states in engine.step(batch)]
        logits = [self._engines[-1].logits(states) for states in data]
        return [encode(h, WireDtype.F32) + encode(y, WireDtype.F32) for h, y in zip(data, logits, strict=True)]

    def alone(self, tokens: Int32, cuts: Sequence[int] = ()) -> list[bytes]:
        """One sequence, cut into pieces; the bytes of every position's states and of its logits."""
        sequence = self.new()
        rows: list[bytes] = []
        for start, end in pairwise([0, *cuts, len(tokens)]):
            rows += split_rows(self.feed([sequence], [tokens[start:end]])[0], self._engines[-1], end - start)
        return rows


def split_rows(data: bytes, engine: ExactShardEngine, count: int) -> list[bytes]:
    """Per position: the bytes of its states, then of its logits."""
    states, logits = data[: 4 * count * engine.hidden], data[4 * count * engine.hidden :]
    h, v = 4 * engine.hidden, 4 * engine.vocab
    return [states[i * h : (i + 1) * h] + logits[i * v : (i + 1) * v] for i in range(count)]


def over_the_wire(states: Float32) -> Float32:
    """What the next node reads. The engine's own bytes are canonical already."""
    data = encode(states, WireDtype.F32)
    assert data == states.tobytes()
    received: Float32 = decode(data, WireDtype.F32, states.shape[1])
    return received


def digest(rows: Sequence[bytes]) -> str:
    return hashlib.sha256(b"".join(rows)).hexdigest()
