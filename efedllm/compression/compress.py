"""Compressing a checkpoint into a published model, one layer at a time."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial

import torch

import efedllm
from efedllm.compression.calibrate import Moments
from efedllm.compression.layer_forms import Layer, MeasuredLayer, Measurement, groups_of, make, measure
from efedllm.compression.measured_files import MeasuredFiles
from efedllm.compression.options import CompressOptions, check
from efedllm.compression.original import Original
from efedllm.compression.plan import Plan, plan_from_json, plan_to_json
from efedllm.compression.planner import Planner
from efedllm.compression.publish import embed_tensors, head_tensors, make_manifest
from efedllm.compression.report import CompressionReport, HealReport, peak_memory
from efedllm.compression.resume import WorkDirectory
from efedllm.compression.runner import Runner, open_runner
from efedllm.compression.sensitivity import Backward, Curvature
from efedllm.errors import ConfigError
from efedllm.models.checkpoint import resolve
from efedllm.models.families import read_config
from efedllm.models.manifest import EMBED_FILE, HEAD_FILE, MANIFEST_NAME, Manifest, TensorInfo, layer_file
from efedllm.models.skeleton import build_skeleton, is_matrix

CompressProgress = Callable[[int, int, float], None]
"""Called with (steps done, steps in total, estimated seconds left) after each layer, and once for embeddings and
head. `auto` and `kfac` pass over the layers twice."""

# The curvature needs fewer tokens than the integers: it only ranks the matrices.
_CURVATURE_TOKENS = 16_384
# What other arithmetic left behind under equal options is made again.
_ARITHMETIC = "2"
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
    CompressionReport(
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
        if options.out.resolve() == original.source.resolve():
            raise ConfigError("bad-options", "The model cannot be published into itself.", "Choose another --out.")
        self._item = original.dtype.itemsize
        self._shapes = original.shapes
        # Before anything is written: a budget that cannot be kept leaves an earlier result alone.
        self._planner = Planner(options, original.shapes, original.dtype.itemsize)
        self._packs = options.method in ("lowrank+int4", "auto")
        whitens = options.method == "whiten" and self._planner.keep < 1
        # What the forms are fitted to, and what has to be read at all.
        self._collects = self._packs or whitens
        self._calibrates = self._collects or self._planner.measures

    def run(self, runner: Runner, progress: CompressProgress) -> Manifest:
        out, layers = self._options.out, self._skeleton.layers
        work = WorkDirectory(out, self.options_hash())
        steps = layers + 1 + (layers if self._planner.measures else 0)
        started = time.monotonic()
        done = made = 0

        def report(count: int, *, fresh: bool = True) -> None:
            nonlocal done, made
            done, made = done + count, made + (count if fresh else 0)
            pace = (time.monotonic() - started) / max(made, 1)
            progress(done, steps, pace * (steps - done))

        (out / MANIFEST_NAME).unlink(missing_ok=True)
        report(0)
        entries = list(work.keep_or_write(EMBED_FILE, partial(embed_tensors, self._original, int8=self._options.int8)))
        if not self._skeleton.family.is_encoder:
            entries += work.keep_or_write(HEAD_FILE, partial(head_tensors, self._original, int8=self._options.int8))
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

    def _plan(self, work: WorkDirectory, runner: Runner, files: MeasuredFiles, report: Callable[..., None]) -> Plan:
        if self._planner.fixed is not None:
            return self._planner.fixed
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
        plan = self._planner.allocate(measured)
        work.save_note(_PLAN_NOTE, plan_to_json(plan))
        return plan

    def _files(self, work: WorkDirectory) -> MeasuredFiles:
        """What was measured does not depend on the budget."""
        text = self._original.text_hash() if self._planner.measures else ""
        forms = [repr(choice) for choice in self._planner.table]
        known = [
            self._sources(),
            text,
            self._options.calibration_tokens,
            forms,
            self._planner.factors,
            self._planner.int8_factors,
        ]
        identity = hashlib.sha256(json.dumps(known).encode()).hexdigest()
        return MeasuredFiles(self._options.measured or work.folder("measured"), identity)

    def _measured(self, work: WorkDirectory, runner: Runner) -> Iterator[tuple[int, MeasuredLayer]]:
        """Every layer's figures and factors, last layer first."""
        original, layers = self._original, self._skeleton.layers
        tokens = min(_CURVATURE_TOKENS, self._options.calibration_tokens)
        calibration = original.calibration(tokens, work.scratch("states"))
        backward = Backward(calibration, layers, original.load, work.scratch("inputs"), outputs=self._planner.factors)
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
            table=self._planner.table,
            factors=self._planner.factors,
            int8=self._planner.int8_factors,
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
        nested, means = files.read(index, matrices, plan) if self._planner.factors else ({}, {})
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
        return {"config": config, "weights": weights, "version": efedllm.__version__, "arithmetic": _ARITHMETIC}

    def manifest(self, entries: list[TensorInfo]) -> Manifest:
        calibrated = self._calibrates or self._options.heal > 0
        return make_manifest(self._options, self._original, entries, keep=self._planner.keep, calibrated=calibrated)
