"""Compressing a checkpoint into a published model, one layer at a time."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

import efedllm
from efedllm.compression.calibrate import Calibration, Moments, read_tokens, window_for
from efedllm.compression.encode import DTYPE_NAMES, Encoded, encode_dense, encode_factors, storage_dtype
from efedllm.compression.factor import rank_for, truncate, whiten_inputs, whiten_outputs
from efedllm.compression.work import WorkDirectory
from efedllm.errors import ConfigError
from efedllm.models.checkpoint import PLAIN_NAMES, Checkpoint, resolve
from efedllm.models.families import Skeleton, build_skeleton, is_matrix, read_config
from efedllm.models.manifest import (
    EMBED_FILE,
    HEAD_FILE,
    LAYER_EMBED,
    LAYER_HEAD,
    MANIFEST_NAME,
    FileInfo,
    Manifest,
    TensorInfo,
    layer_file,
    weights_root,
)

CompressProgress = Callable[[int, int, float], None]
"""Called with (steps done, steps in total, estimated seconds left) after each layer, and once for embeddings and
head."""


@dataclass(frozen=True)
class CompressOptions:
    """What to make of which model.

    model: directory or hub id of a transformers checkpoint
    out: directory to publish into
    keep: fraction of each layer matrix's parameters its factors keep, in (0, 1]; 1.0 leaves matrices dense
    quant: "int8" stores matrices, factors and token embeddings as int8 rows with float32 scales
    method: "truncate" (plain SVD) or "whiten" (activation-aware SVD); no effect at keep 1.0
    calibration: text file for "whiten"; by default calibration.txt beside the model
    calibration_tokens: tokens of it to use; hidden states of them all are held in memory as float32
    """

    model: str
    out: Path
    keep: float = 1.0
    quant: Literal["none", "int8"] = "none"
    method: Literal["truncate", "whiten"] = "truncate"
    calibration: Path | None = None
    calibration_tokens: int = 32_768


def compress(options: CompressOptions, progress: CompressProgress | None = None) -> Manifest:
    """Write the published form of `options.model` into `options.out` and return its manifest.

    Memory: one layer in float32, and for "whiten" the calibration states. Equal options and checkpoint give equal
    bytes on one machine and torch build. Layer files that an interrupted run with the same options finished are
    kept. Raises ConfigError "bad-options" or "no-calibration", ModelError "no-model", "unsupported-model",
    "corrupt-weights".
    """
    _check(options)
    source = resolve(options.model)
    config = read_config(source)
    job = _Job(options, source, build_skeleton(config, "sdpa"))
    return job.run(progress or (lambda _done, _total, _eta: None))


def _check(options: CompressOptions) -> None:
    if not 0 < options.keep <= 1:
        raise ConfigError(
            "bad-options", f"keep is {options.keep}.", "Give a fraction above 0 and up to 1, for example 0.9."
        )
    if options.quant not in ("none", "int8"):
        raise ConfigError("bad-options", f"Unknown quantisation {options.quant}.", "Use none or int8.")
    if options.method not in ("truncate", "whiten"):
        raise ConfigError("bad-options", f"Unknown method {options.method}.", "Use truncate or whiten.")
    if options.calibration_tokens < 2:
        raise ConfigError("bad-options", "Calibration needs at least 2 tokens.", "Leave --calibration-tokens out.")


class _Job:
    def __init__(self, options: CompressOptions, source: Path, skeleton: Skeleton) -> None:
        self._options = options
        self._source = source
        self._skeleton = skeleton
        self._int8 = options.quant == "int8"
        self._checkpoint = Checkpoint(source, skeleton.family.base)
        if options.out.resolve() == source.resolve():
            raise ConfigError("bad-options", "The model cannot be published into itself.", "Choose another --out.")
        self._whitens = options.method == "whiten" and options.keep < 1
        self._text = options.calibration or source / "calibration.txt"

    def run(self, progress: CompressProgress) -> Manifest:
        out, layers = self._options.out, self._skeleton.layers
        work = WorkDirectory(out, self._options_hash())
        steps = layers + 1
        started = time.monotonic()
        made = 0

        def report(done: int) -> None:
            pace = (time.monotonic() - started) / max(made, 1)
            progress(done, steps, pace * (steps - done))

        (out / MANIFEST_NAME).unlink(missing_ok=True)
        report(0)
        entries = [
            *work.keep_or_write(EMBED_FILE, self._embed_tensors),
            *work.keep_or_write(HEAD_FILE, self._head_tensors),
        ]
        report(1)
        calibration = (
            self._calibration() if self._whitens and not work.has_all(map(layer_file, range(layers))) else None
        )
        for index in range(layers):
            name = layer_file(index)
            fresh = not work.has(name)
            moments = self._advance(calibration, index, collect=fresh) if calibration is not None else {}
            entries += work.keep_or_write(name, partial(self._layer_tensors, index, moments))
            made += fresh
            report(index + 2)
        manifest = self._manifest(entries)
        manifest.save(out)
        work.finish()
        return manifest

    def _options_hash(self) -> str:
        """Identifies what a layer file was made from; a file made otherwise is made again."""
        known = {
            k: v for k, v in asdict(self._options).items() if k in ("keep", "quant", "method", "calibration_tokens")
        }
        known["config"] = hashlib.sha256((self._source / "config.json").read_bytes()).hexdigest()
        known["weights"] = self._checkpoint.fingerprint()
        known["version"] = efedllm.__version__
        if self._whitens:
            if not self._text.is_file():
                raise ConfigError(
                    "no-calibration",
                    f"The method whiten needs a calibration text; {self._text} does not exist.",
                    "Give a text file with --calibration.",
                )
            known["text"] = hashlib.sha256(self._text.read_bytes()).hexdigest()
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()

    def _embed_tensors(self) -> Iterator[Encoded]:
        family = self._skeleton.family
        name = f"{family.embed}.weight"
        yield encode_dense(name, LAYER_EMBED, EMBED_FILE, self._checkpoint.tensor(name), int8=self._int8)
        if family.positions is not None:
            name = f"{family.positions}.weight"
            yield encode_dense(name, LAYER_EMBED, EMBED_FILE, self._checkpoint.tensor(name))

    def _head_tensors(self) -> Iterator[Encoded]:
        family = self._skeleton.family
        for name, _ in self._skeleton.model.get_submodule(family.norm).named_parameters(prefix=family.norm):
            yield encode_dense(name, LAYER_HEAD, HEAD_FILE, self._checkpoint.tensor(name))
        if not self._skeleton.tied:
            name = f"{family.head}.weight"
            yield encode_dense(name, LAYER_HEAD, HEAD_FILE, self._checkpoint.tensor(name), int8=self._int8)

    def _layer_tensors(self, index: int, moments: dict[str, Moments]) -> Iterator[Encoded]:
        layer, prefix, file = self._skeleton.layer(index), self._skeleton.layer_prefix(index), layer_file(index)
        for path, module in layer.named_modules():
            for parameter, _ in module.named_parameters(recurse=False):
                name = f"{prefix}{path}.{parameter}"
                tensor = self._checkpoint.tensor(name)
                if parameter != "weight" or not is_matrix(module):
                    yield encode_dense(name, index, file, tensor)
                    continue
                # Conv1D keeps [in, out]; everything published is [out, in].
                weight = tensor if isinstance(module, nn.Linear) else tensor.T
                yield self._matrix(name, index, file, weight, moments.get(path))

    def _matrix(self, name: str, index: int, file: str, weight: Tensor, moments: Moments | None) -> Encoded:
        rows, cols = weight.shape
        rank = rank_for(self._options.keep, rows, cols)
        scale = 4 if self._int8 else 0
        item = 1 if self._int8 else storage_dtype(weight).itemsize
        low = rank * (rows + cols) * item + (rows + rank) * scale
        if self._options.keep == 1 or rank < 1 or low >= rows * (cols * item + scale):
            return encode_dense(name, index, file, weight, int8=self._int8)
        if moments is None:
            u, v = truncate(weight, rank)
        elif moments.inputs is not None:
            u, v = whiten_inputs(weight, moments.inputs, rank)
        else:
            assert moments.outputs is not None
            u, v = whiten_outputs(weight, moments.outputs, moments.input_power, rank)
        return encode_factors(name, index, file, u, v, storage_dtype(weight), int8=self._int8)

    def _calibration(self) -> Calibration:
        skeleton, family = self._skeleton, self._skeleton.family
        ids = read_tokens(
            self._text,
            self._source / "tokenizer.json",
            window_for(skeleton.config),
            self._options.calibration_tokens,
            skeleton.vocab,
        )
        positions = self._checkpoint.tensor(f"{family.positions}.weight") if family.positions else None
        return Calibration(skeleton, ids, self._checkpoint.tensor(f"{family.embed}.weight"), positions)

    def _advance(self, calibration: Calibration, index: int, *, collect: bool) -> dict[str, Moments]:
        layer, prefix = self._skeleton.layer(index), self._skeleton.layer_prefix(index)
        names = [name for name, _ in layer.named_parameters()]
        state = {name: self._checkpoint.tensor(prefix + name).float() for name in names}
        layer.load_state_dict(state, assign=True)
        moments = calibration.advance(layer, collect=collect)
        layer.to("meta")
        return moments

    def _manifest(self, entries: list[TensorInfo]) -> Manifest:
        out, skeleton = self._options.out, self._skeleton
        for name in PLAIN_NAMES:
            if (self._source / name).is_file():
                shutil.copyfile(self._source / name, out / name)
        plain = [name for name in PLAIN_NAMES if (out / name).is_file()]
        files = tuple(_file_info(out / name) for name in sorted({*plain, *(entry.file for entry in entries)}))
        tensors = tuple(sorted(entries, key=lambda t: (t.layer, t.name)))
        dtype = DTYPE_NAMES[storage_dtype(self._checkpoint.tensor(f"{skeleton.family.embed}.weight"))]
        return Manifest(
            architecture=str(skeleton.config.architectures[0])
            if skeleton.config.architectures
            else type(skeleton.model).__name__,
            model_type=str(skeleton.config.model_type),
            layers=skeleton.layers,
            hidden=skeleton.hidden,
            vocab=skeleton.vocab,
            tied=skeleton.tied,
            dtype=dtype,
            method=self._options.method,
            keep=float(self._options.keep),
            quant=self._options.quant,
            tensors=tensors,
            files=files,
            weights_root="0x" + weights_root(tensors, files).hex(),
            created_by=f"efedllm {efedllm.__version__}",
        )


def _file_info(path: Path) -> FileInfo:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileInfo(name=path.name, size=path.stat().st_size, sha256=digest)
