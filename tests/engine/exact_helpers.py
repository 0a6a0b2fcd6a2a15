"""Published models whose every byte follows from sha256, and hashes of what an exact engine makes of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from efedllm.commitments.canonical import WireDtype, decode, encode
from efedllm.compression.encode import Encoded, encode_dense, encode_factors
from efedllm.engine.exact.products import Kernel
from efedllm.engine.exact.shard import ExactShardEngine
from efedllm.engine.protocol import Float32, Int32, StepItem
from efedllm.engine.protocol import Sequence as TokenSequence
from efedllm.models.families import build_skeleton
from efedllm.models.manifest import (
    EMBED_FILE,
    HEAD_FILE,
    LAYER_EMBED,
    LAYER_HEAD,
    FileInfo,
    Manifest,
    layer_file,
    weights_root,
)
from efedllm.models.tensorfile import Part, write_tensor_file
from tests.model_fixtures import family_config

MODELS = (("llama", None), ("llama-tied", 12), ("mistral", 12), ("qwen2", None), ("qwen2", 12), ("qwen3", None))
"""Families, each with the rank of its factors or None for dense matrices."""

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


def publish_counters(directory: Path, family: str, rank: int | None) -> Manifest:
    """Write the tiny int8 model of `family`; `rank` factors every matrix of the layers. No LAPACK, no torch.randn."""
    directory.mkdir(parents=True, exist_ok=True)
    config = family_config(family)
    skeleton = build_skeleton(config, "eager")
    config.save_pretrained(directory)
    entries = list(_encoded(skeleton, rank))
    files: dict[str, dict[str, Part]] = {}
    for entry in entries:
        files.setdefault(entry.info.file, {}).update(entry.parts)
    for name, parts in files.items():
        write_tensor_file(directory / name, parts)
    tensors = tuple(sorted((e.info for e in entries), key=lambda t: (t.layer, t.name)))
    infos = tuple(_info(directory / name) for name in sorted([*files, "config.json"]))
    manifest = Manifest(
        architecture=type(skeleton.model).__name__,
        model_type=config.model_type,
        layers=skeleton.layers,
        hidden=skeleton.hidden,
        vocab=skeleton.vocab,
        tied=skeleton.tied,
        dtype="float32",
        method="truncate",
        keep=1.0,
        quant="int8",
        tensors=tensors,
        files=infos,
        weights_root="0x" + weights_root(tensors, infos).hex(),
        created_by="test",
    )
    manifest.save(directory)
    return manifest


def _encoded(skeleton: Any, rank: int | None) -> Iterator[Encoded]:
    family = skeleton.family
    for name, parameter in skeleton.model.named_parameters():
        shape = tuple(parameter.shape)
        if name.startswith(family.layers + "."):
            layer = int(name[len(family.layers) + 1 :].split(".")[0])
            file = layer_file(layer)
        else:
            layer, file = (LAYER_EMBED, EMBED_FILE) if name == f"{family.embed}.weight" else (LAYER_HEAD, HEAD_FILE)
        if parameter.ndim == 1:
            center = 0.0 if name.endswith("bias") else 1.0
            yield encode_dense(name, layer, file, _tensor(name, shape, center))
        elif rank is not None and file.startswith("layer"):
            u = _tensor(f"{name}.u", (shape[0], rank), width=0.5)
            v = _tensor(f"{name}.v", (rank, shape[1]), width=0.5)
            yield encode_factors(name, layer, file, u, v, torch.float32, int8=True)
        else:
            yield encode_dense(name, layer, file, _tensor(name, shape), int8=True)


def _info(path: Path) -> FileInfo:
    data = path.read_bytes()
    return FileInfo(name=path.name, size=len(data), sha256=hashlib.sha256(data).hexdigest())


def load_parts(directory: Path, parts: int, kernel: Kernel | None = None, threads: int = 1) -> list[ExactShardEngine]:
    layers = Manifest.load(directory).layers
    bounds = [layers * i // parts for i in range(parts + 1)]
    return [ExactShardEngine.load(directory, lo, hi, kernel=kernel, threads=threads) for lo, hi in pairwise(bounds)]


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
