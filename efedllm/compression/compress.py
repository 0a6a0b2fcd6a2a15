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
from typing import Literal, get_args

import torch
from torch import Tensor, nn

import efedllm
from efedllm.compression.calibrate import Calibration, Moments, read_tokens, window_for
from efedllm.compression.encode import (
    DTYPE_NAMES,
    Encoded,
    encode_dense,
    encode_factors,
    encode_packed,
    storage_dtype,
)
from efedllm.compression.factor import rank_for, truncate, whiten_inputs, whiten_outputs
from efedllm.compression.lowbit import Inputs, quantize
from efedllm.compression.plan import (
    Choice,
    Plan,
    Shape,
    all_int8,
    allocate,
    check_budget,
    factored_bytes,
    keep_within,
    losses,
    lowrank_int4,
    plan_from_json,
    plan_to_json,
)
from efedllm.compression.sensitivity import Backward
from efedllm.compression.work import WorkDirectory
from efedllm.errors import ConfigError
from efedllm.models.checkpoint import PLAIN_NAMES, Checkpoint, resolve
from efedllm.models.families import Skeleton, build_skeleton, is_matrix, linear_shape, read_config
from efedllm.models.manifest import (
    EMBED_FILE,
    HEAD_FILE,
    LAYER_EMBED,
    LAYER_HEAD,
    MANIFEST_NAME,
    FileInfo,
    Manifest,
    Method,
    Quant,
    TensorInfo,
    layer_file,
    weights_root,
)

CompressProgress = Callable[[int, int, float], None]
"""Called with (steps done, steps in total, estimated seconds left) after each layer, and once for embeddings and
head. `auto` passes over the layers twice."""

AUTO_BUDGET = 0.30
RANK = 8
# The curvature needs fewer tokens than the integers: it only ranks the matrices.
_CURVATURE_TOKENS = 16_384
_PLAN_NOTE = "plan"


EmbedQuant = Literal["none", "int8"]


@dataclass(frozen=True)
class CompressOptions:
    """What to make of which model.

    model: directory or hub id of a transformers checkpoint
    out: directory to publish into
    keep: fraction of each layer matrix's parameters its factors keep, in (0, 1]; 1.0 leaves matrices dense
    quant: "int8" stores token embeddings, and the matrices or factors of "truncate" and "whiten", as int8 rows with
        float32 scales
    method: "truncate" (plain SVD) or "whiten" (activation-aware SVD), no effect at keep 1.0; "int8" rows;
        "lowrank+int4", 4-bit integers with int8 factors of one rank; "auto", for each matrix the form that loses least
    budget: bytes the layers' matrices may take, as a fraction of those of 16-bit dense weights, in (0, 1]. Sets `keep`
        for "truncate" and "whiten", the rank for "lowrank+int4"; without it that has rank 8, and "auto" 0.30
    calibration: text file for all but "truncate" and "int8"; by default calibration.txt beside the model
    calibration_tokens: tokens of it to use; hidden states of them all are held in memory as float32
    """

    model: str
    out: Path
    keep: float = 1.0
    quant: EmbedQuant = "none"
    method: Method = "truncate"
    calibration: Path | None = None
    calibration_tokens: int = 32_768
    budget: float | None = None


def compress(options: CompressOptions, progress: CompressProgress | None = None) -> Manifest:
    """Write the published form of `options.model` into `options.out` and return its manifest.

    Memory: one layer in float32, and with calibration its states and the second moments of one layer ("auto" also
    keeps states of every layer in a scratch file). Equal options and checkpoint give equal bytes on one machine and
    torch build. Layer files that an interrupted run with the same options finished are kept. Raises ConfigError
    "bad-options", "budget-too-small" or "no-calibration", ModelError "no-model", "unsupported-model",
    "corrupt-weights".
    """
    _check(options)
    source = resolve(options.model)
    config = read_config(source)
    job = _Job(options, source, build_skeleton(config, "sdpa"))
    return job.run(progress or (lambda _done, _total, _eta: None))


_SVD_METHODS = ("truncate", "whiten")


def _check(options: CompressOptions) -> None:
    if not 0 < options.keep <= 1:
        raise ConfigError(
            "bad-options", f"keep is {options.keep}.", "Give a fraction above 0 and up to 1, for example 0.9."
        )
    if options.quant not in ("none", "int8"):
        raise ConfigError("bad-options", f"Unknown quantisation {options.quant}.", "Use none or int8.")
    if options.method not in get_args(Method):
        raise ConfigError(
            "bad-options", f"Unknown method {options.method}.", f"Use one of {', '.join(get_args(Method))}."
        )
    if options.budget is not None and not 0 < options.budget <= 1:
        raise ConfigError(
            "bad-options", f"budget is {options.budget}.", "Give a fraction above 0 and up to 1, for example 0.3."
        )
    if options.keep < 1 and (options.budget is not None or options.method not in _SVD_METHODS):
        raise ConfigError(
            "bad-options",
            "keep sets the ranks of truncate and whiten, and a budget sets them too.",
            "Give --budget alone, or --keep with --method truncate or whiten.",
        )
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
        self._text = options.calibration or source / "calibration.txt"
        self._item = storage_dtype(self._checkpoint.tensor(f"{skeleton.family.embed}.weight")).itemsize
        self._shapes = self._matrix_shapes()
        self._keep = options.keep
        if options.budget is not None and options.method in _SVD_METHODS:
            self._keep = keep_within(self._shapes, options.budget, int8=self._int8, item=self._item)
        # Before anything is written: a budget that cannot be kept leaves an earlier result alone.
        self._fixed_plan = self._plan_without_measuring()
        self._packs = options.method in ("lowrank+int4", "auto")
        self._calibrates = self._packs or (options.method == "whiten" and self._keep < 1)

    def _matrix_shapes(self) -> dict[str, Shape]:
        skeleton = self._skeleton
        return {
            f"{skeleton.layer_prefix(index)}{path}.weight": linear_shape(module)
            for index in range(skeleton.layers)
            for path, module in skeleton.layer(index).named_modules()
            if is_matrix(module)
        }

    def run(self, progress: CompressProgress) -> Manifest:
        out, layers = self._options.out, self._skeleton.layers
        work = WorkDirectory(out, self._options_hash())
        steps = layers + 1 + (layers if self._options.method == "auto" else 0)
        started = time.monotonic()
        done = made = 0

        def report(count: int, *, fresh: bool = True) -> None:
            nonlocal done, made
            done, made = done + count, made + (count if fresh else 0)
            pace = (time.monotonic() - started) / max(made, 1)
            progress(done, steps, pace * (steps - done))

        (out / MANIFEST_NAME).unlink(missing_ok=True)
        report(0)
        entries = list(work.keep_or_write(EMBED_FILE, self._embed_tensors))
        if not self._skeleton.family.is_encoder:
            entries += work.keep_or_write(HEAD_FILE, self._head_tensors)
        report(1, fresh=False)
        plan = self._plan(work, report)
        calibration = None
        if self._calibrates and not work.has_all(map(layer_file, range(layers))):
            calibration = self._calibration(self._options.calibration_tokens)
        for index in range(layers):
            name = layer_file(index)
            fresh = not work.has(name)
            moments: dict[str, Moments] = {}
            if calibration is not None:
                layer = self._load(index)
                moments = calibration.advance(layer, collect=fresh, all_inputs=self._packs)
                layer.to("meta")
            entries += work.keep_or_write(name, partial(self._layer_tensors, index, moments, plan))
            report(1, fresh=fresh)
        manifest = self._manifest(entries)
        manifest.save(out)
        work.finish()
        return manifest

    def _plan_without_measuring(self) -> Plan | None:
        """The form of every matrix for methods that do not look at the weights. Raises ConfigError
        "budget-too-small"."""
        options = self._options
        if options.method == "auto":
            check_budget(self._shapes, self._budget() or AUTO_BUDGET, self._item)
        if options.method == "int8":
            return all_int8(self._shapes, options.budget)
        return lowrank_int4(self._shapes, options.budget, RANK) if options.method == "lowrank+int4" else None

    def _plan(self, work: WorkDirectory, report: Callable[..., None]) -> Plan | None:
        """The form of every matrix, where it is not given by `keep`."""
        if self._options.method != "auto":
            return self._fixed_plan
        found = work.note(_PLAN_NOTE)
        if found is not None:
            report(self._skeleton.layers, fresh=False)
            return plan_from_json(found)
        plan = allocate(self._shapes, self._losses(work, report), self._budget() or AUTO_BUDGET, self._item)
        work.save_note(_PLAN_NOTE, plan_to_json(plan))
        return plan

    def _losses(self, work: WorkDirectory, report: Callable[..., None]) -> dict[str, dict[Choice, float]]:
        """What each form of each matrix costs."""
        skeleton = self._skeleton
        calibration = self._calibration(min(_CURVATURE_TOKENS, self._options.calibration_tokens))
        backward = Backward(calibration, skeleton.layers, self._load, work.scratch("states"))
        table: dict[str, dict[Choice, float]] = {}
        try:
            for index, curvatures in backward.run(self._head()):
                inputs: dict[int, Inputs] = {}
                for path, curvature in curvatures.items():
                    name = f"{skeleton.layer_prefix(index)}{path}.weight"
                    key = id(curvature.inputs)
                    shared = inputs.get(key) or inputs.setdefault(key, Inputs.of(curvature.inputs))
                    table[name] = losses(self._matrix(name), curvature, shared, self._item)
                report(1)
        finally:
            backward.close()
        return table

    def _matrix(self, name: str) -> Tensor:
        """A weight matrix as published, [out, in]: GPT-2's Conv1D keeps [in, out]."""
        tensor = self._checkpoint.tensor(name)
        module = self._skeleton.model.get_submodule(name.removesuffix(".weight"))
        return tensor if isinstance(module, nn.Linear) else tensor.T

    def _load(self, index: int) -> nn.Module:
        """Layer `index` with its float32 weights; `.to("meta")` lets go of them."""
        layer, prefix = self._skeleton.layer(index), self._skeleton.layer_prefix(index)
        names = [name for name, _ in layer.named_parameters()]
        layer.load_state_dict({name: self._checkpoint.tensor(prefix + name).float() for name in names}, assign=True)
        return layer

    def _head(self) -> Callable[[Tensor], Tensor] | None:
        """Final norm and head in float32: states [n, hidden] -> logits [n, vocab]; None for an encoder."""
        family = self._skeleton.family
        if family.is_encoder:
            return None
        norm = self._module(family.norm)
        owner = family.embed if self._skeleton.tied else family.head
        weight = self._checkpoint.tensor(f"{owner}.weight").float()

        def run(states: Tensor) -> Tensor:
            logits: Tensor = norm(states) @ weight.T
            return logits

        return run

    def _options_hash(self) -> str:
        """Identifies what a layer file was made from; a file made otherwise is made again."""
        known = {
            k: v
            for k, v in asdict(self._options).items()
            if k in ("keep", "quant", "method", "calibration_tokens", "budget")
        }
        known["config"] = hashlib.sha256((self._source / "config.json").read_bytes()).hexdigest()
        known["weights"] = self._checkpoint.fingerprint()
        known["version"] = efedllm.__version__
        if self._calibrates:
            if not self._text.is_file():
                raise ConfigError(
                    "no-calibration",
                    f"The method {self._options.method} needs a calibration text; {self._text} does not exist.",
                    "Give a text file with --calibration.",
                )
            known["text"] = self._text_hash()
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()

    def _text_hash(self) -> str:
        return hashlib.sha256(self._text.read_bytes()).hexdigest()

    def _budget(self) -> float | None:
        budget = self._options.budget
        return AUTO_BUDGET if budget is None and self._options.method == "auto" else budget

    def _embed_tensors(self) -> Iterator[Encoded]:
        family = self._skeleton.family
        name = f"{family.embed}.weight"
        yield encode_dense(name, LAYER_EMBED, EMBED_FILE, self._checkpoint.tensor(name), int8=self._int8)
        if family.positions is not None:
            name = f"{family.positions}.weight"
            yield encode_dense(name, LAYER_EMBED, EMBED_FILE, self._checkpoint.tensor(name))
        if family.types is not None:
            name = f"{family.types}.weight"
            yield encode_dense(name, LAYER_EMBED, EMBED_FILE, self._checkpoint.tensor(name))
        if family.embed_norm is not None:
            norm = self._skeleton.model.get_submodule(family.embed_norm)
            for name, _ in norm.named_parameters(prefix=family.embed_norm):
                yield encode_dense(name, LAYER_EMBED, EMBED_FILE, self._checkpoint.tensor(name))

    def _head_tensors(self) -> Iterator[Encoded]:
        family = self._skeleton.family
        for name, _ in self._skeleton.model.get_submodule(family.norm).named_parameters(prefix=family.norm):
            yield encode_dense(name, LAYER_HEAD, HEAD_FILE, self._checkpoint.tensor(name))
        if not self._skeleton.tied:
            name = f"{family.head}.weight"
            yield encode_dense(name, LAYER_HEAD, HEAD_FILE, self._checkpoint.tensor(name), int8=self._int8)

    def _layer_tensors(self, index: int, moments: dict[str, Moments], plan: Plan | None) -> Iterator[Encoded]:
        layer, prefix, file = self._skeleton.layer(index), self._skeleton.layer_prefix(index), layer_file(index)
        inputs: dict[int, Inputs] = {}
        for path, module in layer.named_modules():
            # What the bias makes up for, where the matrix has one and is packed.
            shift: Tensor | None = None
            for parameter, _ in module.named_parameters(recurse=False):
                name = f"{prefix}{path}.{parameter}"
                if parameter == "weight" and is_matrix(module):
                    if plan is None:
                        yield self._factored(name, index, file, moments.get(path))
                    else:
                        encoded, shift = self._planned(name, index, file, plan[name], moments.get(path), inputs, module)
                        yield encoded
                    continue
                tensor = self._checkpoint.tensor(name)
                if parameter == "bias" and shift is not None:
                    tensor = (tensor.double() + shift).to(tensor.dtype)
                yield encode_dense(name, index, file, tensor)

    def _factored(self, name: str, index: int, file: str, moments: Moments | None) -> Encoded:
        weight = self._matrix(name)
        rows, cols = weight.shape
        rank = rank_for(self._keep, rows, cols)
        item = storage_dtype(weight).itemsize
        dense = factored_bytes((rows, cols), 0, int8=self._int8, item=item)
        if self._keep == 1 or factored_bytes((rows, cols), rank, int8=self._int8, item=item) >= dense:
            return encode_dense(name, index, file, weight, int8=self._int8)
        if moments is None:
            u, v = truncate(weight, rank)
        elif moments.inputs is not None:
            u, v = whiten_inputs(weight, moments.inputs, rank)
        else:
            assert moments.outputs is not None
            u, v = whiten_outputs(weight, moments.outputs, moments.input_power, rank)
        return encode_factors(name, index, file, u, v, storage_dtype(weight), int8=self._int8)

    def _planned(
        self,
        name: str,
        index: int,
        file: str,
        choice: Choice,
        moments: Moments | None,
        shared: dict[int, Inputs],
        module: nn.Module,
    ) -> tuple[Encoded, Tensor | None]:
        """The matrix in its chosen form, and the mean of what its outputs lose by that (None: not corrected).

        A bias takes up that mean, so that the rest is fitted to the inputs' covariance.
        """
        weight = self._matrix(name)
        if choice.bits >= 8:
            return encode_dense(name, index, file, weight, int8=choice.bits == 8), None
        assert moments is not None
        assert moments.inputs is not None
        assert moments.mean is not None
        if getattr(module, "bias", None) is None:
            inputs = shared.get(id(moments.inputs)) or shared.setdefault(id(moments.inputs), Inputs.of(moments.inputs))
        else:
            inputs = Inputs.of(moments.inputs - torch.outer(moments.mean, moments.mean))
        matrix = quantize(weight, inputs, choice.bits, group=choice.group, rank=choice.rank)
        shift = (weight.double() - matrix.dense()) @ moments.mean
        return encode_packed(name, index, file, matrix), shift

    def _calibration(self, tokens: int) -> Calibration:
        skeleton, family = self._skeleton, self._skeleton.family
        ids = read_tokens(
            self._text,
            self._source / "tokenizer.json",
            window_for(skeleton.config),
            tokens,
            skeleton.vocab,
        )
        positions = self._checkpoint.tensor(f"{family.positions}.weight") if family.positions else None
        embed = self._checkpoint.tensor(f"{family.embed}.weight")
        if family.types is None or family.embed_norm is None:
            return Calibration(skeleton, ids, embed, positions)
        segment = self._checkpoint.tensor(f"{family.types}.weight")[0]
        return Calibration(skeleton, ids, embed, positions, segment, self._module(family.embed_norm))

    def _module(self, path: str) -> nn.Module:
        """The module at `path` with its float32 parameters."""
        module = self._skeleton.model.get_submodule(path).requires_grad_(False)
        names = [name for name, _ in module.named_parameters()]
        state = {name: self._checkpoint.tensor(f"{path}.{name}").float() for name in names}
        module.load_state_dict(state, assign=True)
        return module

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
            keep=float(self._keep),
            quant=self._quant(entries),
            tensors=tensors,
            files=files,
            budget=self._budget(),
            calibration=self._text_hash() if self._calibrates else None,
            weights_root="0x" + weights_root(tensors, files).hex(),
            created_by=f"efedllm {efedllm.__version__}",
        )

    def _quant(self, entries: list[TensorInfo]) -> Quant:
        if any(entry.form == "packed" for entry in entries):
            return "packed"
        rows = any(entry.dtype == "int8" and entry.name in self._shapes for entry in entries)
        return "int8" if rows else self._options.quant


def _file_info(path: Path) -> FileInfo:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileInfo(name=path.name, size=path.stat().st_size, sha256=digest)
