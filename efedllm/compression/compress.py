"""Compressing a checkpoint into a published model, one layer at a time."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import torch

import efedllm
from efedllm.compression.calibrate import Moments
from efedllm.compression.encode import DTYPE_NAMES, Encoded, encode_dense
from efedllm.compression.forms import Layer, MeasuredLayer, Measurement, groups_of, make, measure
from efedllm.compression.options import SVD_METHODS, CompressOptions, check
from efedllm.compression.original import Original
from efedllm.compression.plan import (
    DENSE,
    FACTORS_BELOW,
    INT8,
    LADDER,
    Choice,
    Group,
    Measured,
    Plan,
    all_int8,
    allocate_groups,
    check_budget,
    keep_within,
    lowrank_int4,
    plan_from_json,
    plan_to_json,
    uniform,
)
from efedllm.compression.report import HealReport, Report, peak_memory
from efedllm.compression.runner import Runner, open_runner
from efedllm.compression.scratch import MeasuredFiles
from efedllm.compression.sensitivity import Backward, Curvature
from efedllm.compression.work import WorkDirectory
from efedllm.errors import ConfigError
from efedllm.models.checkpoint import PLAIN_NAMES, resolve
from efedllm.models.families import build_skeleton, is_matrix, read_config
from efedllm.models.manifest import (
    EMBED_FILE,
    HEAD_FILE,
    LAYER_EMBED,
    LAYER_HEAD,
    MANIFEST_NAME,
    FileInfo,
    Manifest,
    Quant,
    TensorInfo,
    layer_file,
    weights_root,
)

CompressProgress = Callable[[int, int, float], None]
"""Called with (steps done, steps in total, estimated seconds left) after each layer, and once for embeddings and
head. `auto` and `kfac` pass over the layers twice."""

RANK = 8
# The curvature needs fewer tokens than the integers: it only ranks the matrices.
_CURVATURE_TOKENS = 16_384
_PLAN_NOTE = "plan"
_BEGUN = "begun"


def compress(options: CompressOptions, progress: CompressProgress | None = None) -> Manifest:
    """Write the published form of `options.model` into `options.out` and return its manifest; what it took goes to
    compression.json beside it.

    Memory: the largest layer in float32, copies of it while its forms are made, its second moments, and the states of
    one batch of the calibration text (of all of it, while they are small). Healing holds the whole model twice. Equal
    options and checkpoint give equal bytes on one machine, torch build and number of threads. Layer files that an
    interrupted run with the same options finished are kept. Raises ConfigError "bad-options", "budget-too-small",
    "no-calibration", "nothing-to-heal" or "no-ray", ModelError "no-model", "unsupported-model", "corrupt-weights".
    """
    check(options)
    started = time.monotonic()
    source = resolve(options.model)
    config = read_config(source)
    text = options.calibration or source / "calibration.txt"
    original = Original(source, build_skeleton(config, "sdpa"), text)
    job = _Job(options, original)
    shown = progress or (lambda _done, _total, _eta: None)
    heal = None
    if options.heal:
        manifest, heal = _healed(options, original, job, shown)
    else:
        runner = open_runner(options.engine)
        try:
            manifest = job.run(runner, shown)
        finally:
            runner.close()
    Report(
        weights_root=manifest.weights_root,
        seconds=round(time.monotonic() - started, 3),
        peak_memory=peak_memory(),
        threads=torch.get_num_threads(),
        heal=heal,
    ).save(options.out)
    return manifest


def _healed(
    options: CompressOptions, original: Original, job: _Job, progress: CompressProgress
) -> tuple[Manifest, HealReport]:
    """The model compressed in the work directory first, then healed into `options.out`."""
    from efedllm.compression.heal import Healing, identity

    layers, steps = original.skeleton.layers, options.heal
    key = job.options_hash()
    work = WorkDirectory(options.out, key)
    begun = replace(options, heal=0, out=work.folder(_BEGUN))
    if work.note(_BEGUN) is None:
        compress(begun, lambda done, total, left: progress(done, total + steps, left))
        work.save_note(_BEGUN, {"done": True})
    manifest = Manifest.load(begun.out)
    healing = Healing(original, begun.out, manifest, steps, work.scratch("heal"), identity(key, manifest, steps))
    first = time.monotonic()
    made = 0

    def show(done: int, total: int, _loss: float) -> None:
        nonlocal made
        made += 1
        pace = (time.monotonic() - first) / made
        progress(layers + done, layers + total, pace * (total - done))

    curve = healing.run(show)
    (options.out / MANIFEST_NAME).unlink(missing_ok=True)
    entries: list[TensorInfo] = []
    for info in manifest.files:
        if not info.is_plain:
            entries += work.write(info.name, healing.tensors(info.name))
    healed = job.manifest(entries)
    healed.save(options.out)
    work.finish()
    return healed, HealReport(losses=curve.losses, before=curve.before, after=curve.after)


class _Job:
    def __init__(self, options: CompressOptions, original: Original) -> None:
        self._options = options
        self._original = original
        self._skeleton = original.skeleton
        self._int8 = options.int8
        if options.out.resolve() == original.source.resolve():
            raise ConfigError("bad-options", "The model cannot be published into itself.", "Choose another --out.")
        self._item = original.dtype.itemsize
        self._keep = options.keep
        self._shapes = original.shapes
        if options.budget is not None and options.method in SVD_METHODS:
            self._keep = keep_within(self._shapes, options.budget, int8=self._int8, item=self._item)
        self._measures = options.method in ("auto", "kfac")
        budget = options.share or 1.0
        self._factors = options.method == "kfac" or (options.method == "auto" and budget < FACTORS_BELOW)
        # Beside integers, factors are integers too.
        self._int8_factors = self._int8 or options.method == "auto"
        # Before anything is written: a budget that cannot be kept leaves an earlier result alone.
        self._fixed_plan = self._plan_without_measuring()
        self._packs = options.method in ("lowrank+int4", "auto")
        whitens = options.method == "whiten" and self._keep < 1
        # What the forms are fitted to, and what has to be read at all.
        self._collects = self._packs or whitens
        self._calibrates = self._collects or self._measures

    def run(self, runner: Runner, progress: CompressProgress) -> Manifest:
        out, layers = self._options.out, self._skeleton.layers
        work = WorkDirectory(out, self.options_hash())
        steps = layers + 1 + (layers if self._measures else 0)
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
        files = self._files(work)
        plan = self._plan(work, runner, files, report)
        waiting = {index for index in range(layers) if not work.has(layer_file(index))}
        made_layers = runner.map(make, self._layers(waiting, plan, files, work))
        for index in range(layers):
            name, fresh = layer_file(index), index in waiting
            entries += work.write(name, next(made_layers)) if fresh else work.entries(name)
            report(1, fresh=fresh)
        manifest = self.manifest(entries)
        manifest.save(out)
        work.finish()
        return manifest

    def _plan_without_measuring(self) -> Plan | None:
        """The form of every matrix for methods that do not look at the weights; None for the others. Raises ConfigError
        "budget-too-small"."""
        options, shapes = self._options, self._shapes
        if self._measures:
            budget = options.share
            assert budget is not None
            if self._factors:
                self._allocate([self._costless()])
            else:
                check_budget(shapes, budget, self._item)
            return None
        if options.method == "int8":
            return all_int8(shapes, options.budget)
        if options.method == "lowrank+int4":
            return lowrank_int4(shapes, options.budget, RANK)
        return uniform(shapes, self._keep, int8=self._int8, item=self._item)

    def _costless(self) -> Measured:
        """All forms there are, as if none lost anything."""
        spectra: dict[Group, tuple[float, ...]]
        spectra = {(name,): (0.0,) * (min(shape) + 1) for name, shape in self._shapes.items()}
        return Measured(tuple(spectra), {name: dict.fromkeys(self._table(), 0.0) for name in self._shapes}, spectra)

    def _table(self) -> tuple[Choice, ...]:
        """The forms of a single matrix that are compared, besides factors."""
        if self._options.method == "kfac":
            return () if self._options.all_factored else (INT8 if self._int8 else DENSE,)
        return tuple(choice for choice in LADDER if choice != DENSE or not self._options.integers)

    def _allocate(self, measured: list[Measured]) -> Plan:
        budget = self._options.share
        assert budget is not None
        return allocate_groups(self._shapes, measured, budget, int8=self._int8_factors, item=self._item)

    def _plan(self, work: WorkDirectory, runner: Runner, files: MeasuredFiles, report: Callable[..., None]) -> Plan:
        if self._fixed_plan is not None:
            return self._fixed_plan
        found = work.note(_PLAN_NOTE)
        if found is not None:
            report(self._skeleton.layers, fresh=False)
            return plan_from_json(found)
        measured = files.figures(self._skeleton.layers)
        if measured is None:
            measured = []
            for index, (one, nested, means) in self._measured(work, runner):
                files.write(index, one, nested, means)
                measured.append(one)
                report(1)
        else:
            report(self._skeleton.layers, fresh=False)
        plan = self._allocate(measured)
        work.save_note(_PLAN_NOTE, plan_to_json(plan))
        return plan

    def _files(self, work: WorkDirectory) -> MeasuredFiles:
        """What was measured does not depend on the budget."""
        text = self._original.text_hash() if self._measures else ""
        forms = [repr(choice) for choice in self._table()]
        known = [self._sources(), text, self._options.calibration_tokens, forms, self._factors, self._int8_factors]
        identity = hashlib.sha256(json.dumps(known).encode()).hexdigest()
        return MeasuredFiles(self._options.measured or work.folder("measured"), identity)

    def _measured(self, work: WorkDirectory, runner: Runner) -> Iterator[tuple[int, MeasuredLayer]]:
        """Every layer's figures and factors, last layer first."""
        original, layers = self._original, self._skeleton.layers
        tokens = min(_CURVATURE_TOKENS, self._options.calibration_tokens)
        calibration = original.calibration(tokens, work.scratch("states"))
        backward = Backward(calibration, layers, original.load, work.scratch("inputs"))
        try:
            works = (self._measurement(index, found) for index, found in backward.run(original.head()))
            yield from zip(reversed(range(layers)), runner.map(measure, works), strict=True)
        finally:
            backward.close()
            calibration.close()

    def _measurement(self, index: int, found: dict[str, Curvature]) -> Measurement:
        prefix = self._skeleton.layer_prefix(index)
        curvatures = {f"{prefix}{path}.weight": one for path, one in found.items()}
        return Measurement(
            groups=groups_of(curvatures),
            matrices={name: self._original.matrix(name) for name in curvatures},
            curvatures=curvatures,
            biased=frozenset(self._biases(index)),
            table=self._table(),
            factors=self._factors,
            int8=self._int8_factors,
            item=self._item,
        )

    def _layers(self, waiting: set[int], plan: Plan, files: MeasuredFiles, work: WorkDirectory) -> Iterator[Layer]:
        """The layers to be made, in order; the calibration text passes through all of them."""
        if not waiting:
            return
        calibration = None
        if self._collects:
            calibration = self._original.calibration(self._options.calibration_tokens, work.scratch("states"))
        try:
            for index in range(max(waiting) + 1):
                moments: dict[str, Moments] = {}
                if calibration is not None:
                    layer = self._original.load(index)
                    every = self._packs or self._options.stack
                    moments = calibration.advance(layer, collect=index in waiting, all_inputs=every)
                    layer.to("meta")
                if index in waiting:
                    yield self._layer(index, moments, plan, files)
        finally:
            if calibration is not None:
                calibration.close()

    def _layer(self, index: int, moments: dict[str, Moments], plan: Plan, files: MeasuredFiles) -> Layer:
        original, prefix = self._original, self._skeleton.layer_prefix(index)
        names = [f"{prefix}{name}" for name, _ in self._skeleton.layer(index).named_parameters()]
        matrices = {name: original.matrix(name) for name in names if name in self._shapes}
        nested, means = files.read(index, matrices, plan) if self._factors else ({}, {})
        return Layer(
            index=index,
            file=layer_file(index),
            matrices=matrices,
            vectors={name: original.checkpoint.tensor(name) for name in names if name not in matrices},
            biases=self._biases(index),
            plan={name: plan[name] for name in matrices},
            moments={f"{prefix}{path}.weight": one for path, one in moments.items()},
            nested=nested,
            means=means,
            stack=self._options.stack and self._options.method == "whiten",
        )

    def _biases(self, index: int) -> dict[str, str]:
        """Name of the bias of every matrix that has one."""
        prefix = self._skeleton.layer_prefix(index)
        return {
            f"{prefix}{path}.weight": f"{prefix}{path}.bias"
            for path, module in self._skeleton.layer(index).named_modules()
            if is_matrix(module) and getattr(module, "bias", None) is not None
        }

    def options_hash(self) -> str:
        """Identifies what a layer file was made from; a file made otherwise is made again."""
        ignored = ("model", "out", "calibration", "engine", "measured")
        known = {k: v for k, v in asdict(self._options).items() if k not in ignored} | self._sources()
        if self._calibrates or self._options.heal:
            text = self._original.text
            if not text.is_file():
                raise ConfigError(
                    "no-calibration",
                    f"The method {self._options.method} needs a calibration text; {text} does not exist.",
                    "Give a text file with --calibration.",
                )
            known["text"] = self._original.text_hash()
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()

    def _sources(self) -> dict[str, str]:
        config = hashlib.sha256((self._original.source / "config.json").read_bytes()).hexdigest()
        weights = self._original.checkpoint.fingerprint()
        return {"config": config, "weights": weights, "version": efedllm.__version__}

    def _embed_tensors(self) -> Iterator[Encoded]:
        family = self._skeleton.family
        name = f"{family.embed}.weight"
        yield encode_dense(name, LAYER_EMBED, EMBED_FILE, self._original.checkpoint.tensor(name), int8=self._int8)
        if family.positions is not None:
            name = f"{family.positions}.weight"
            yield encode_dense(name, LAYER_EMBED, EMBED_FILE, self._original.checkpoint.tensor(name))
        if family.types is not None:
            name = f"{family.types}.weight"
            yield encode_dense(name, LAYER_EMBED, EMBED_FILE, self._original.checkpoint.tensor(name))
        if family.embed_norm is not None:
            norm = self._skeleton.model.get_submodule(family.embed_norm)
            for name, _ in norm.named_parameters(prefix=family.embed_norm):
                yield encode_dense(name, LAYER_EMBED, EMBED_FILE, self._original.checkpoint.tensor(name))

    def _head_tensors(self) -> Iterator[Encoded]:
        family = self._skeleton.family
        for name, _ in self._skeleton.model.get_submodule(family.norm).named_parameters(prefix=family.norm):
            yield encode_dense(name, LAYER_HEAD, HEAD_FILE, self._original.checkpoint.tensor(name))
        if not self._skeleton.tied:
            name = f"{family.head}.weight"
            yield encode_dense(name, LAYER_HEAD, HEAD_FILE, self._original.checkpoint.tensor(name), int8=self._int8)

    def manifest(self, entries: list[TensorInfo]) -> Manifest:
        out, skeleton = self._options.out, self._skeleton
        for name in PLAIN_NAMES:
            if (self._original.source / name).is_file():
                shutil.copyfile(self._original.source / name, out / name)
        plain = [name for name in PLAIN_NAMES if (out / name).is_file()]
        files = tuple(_file_info(out / name) for name in sorted({*plain, *(entry.file for entry in entries)}))
        tensors = tuple(sorted(entries, key=lambda t: (t.layer, t.name)))
        dtype = DTYPE_NAMES[self._original.dtype]
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
            budget=self._options.share,
            calibration=self._original.text_hash() if self._calibrates or self._options.heal else None,
            heal=self._options.heal,
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
