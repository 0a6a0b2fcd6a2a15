"""The tolerance of a float model, decoder or encoder, measured on honest machines and on the weakest cheat.

Every machine of `efedllm_bench.fleet` runs ranges of the model's layers over a text and over inputs that strain the
numerics. The deviations of its rows from one verifier's prefill give the limit. Then every cheat of `tried_cheats` runs
over the text. Its smallest deviation must lie well above the limit, else the tolerance slashes nobody; where it does
not lie above the largest honest deviation, no tolerance is written. Where the model has integer weights, the machines
differ also in what multiplies these.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from efedllm.engine.protocol import Executor, StepItem
from efedllm.engine.select import load_executor
from efedllm.errors import ConfigError, ModelError
from efedllm.models.manifest import ENCODERS, Manifest
from efedllm.models.packing import PACKED_BITS
from efedllm.models.tokenizer import open_tokenizer
from efedllm.models.tolerance import ATTACK_MARGIN, MOST_TAU, Tolerance
from efedllm_bench.calibration.limits import tau_of
from efedllm_bench.calibration.tried_cheats import CalibrationShop, armed, cheats
from efedllm_bench.fleet.machines import Machine, compute, machines, native_machines
from efedllm_bench.fleet.stress import strained
from efedllm_bench.fleet.worker import MODES, TEXT_MODES
from efedllm_verifier.statistic import ROUNDING

Rows = npt.NDArray[np.float32]
Deviations = npt.NDArray[np.float64]
Say = Callable[[str], None]

_LENGTHS = (32, 96, 128)
_DECODED = 2  # sequences of a kind that every machine also decodes one by one


@dataclass(frozen=True)
class CalibrateOptions:
    """directory: published float model, its manifest is rewritten; texts: files to run through it; tokens: of them in
    all; fleet: the honest machines, to which come those that multiply integers differently, where the model has any."""

    directory: Path
    texts: Sequence[Path]
    tokens: int = 4096
    fleet: Sequence[Machine] = tuple(machines(eager=True, quick=False))


@dataclass
class Spread:
    """Deviations of honest rows. `beyond`: without what float32 rounding of a large residual explains."""

    count: int = 0
    beyond: float = 0.0
    where: str = ""
    logs: list[Deviations] = field(default_factory=list)

    def add(self, name: str, plain: Deviations, beyond: Deviations, *, natural: bool) -> None:
        self.count += len(plain)
        worst = float(beyond.max())
        if worst > self.beyond:
            self.beyond, self.where = worst, name
        if natural:
            self.logs.append(np.log(plain[plain > 0]))


@dataclass(frozen=True)
class Limit:
    """What the measured deviations come to. `weakest`: name of the weakest cheat that counts."""

    tau: float
    weakest: str
    attack_min: float
    slashable: bool


def decide(honest_max: float, log_mean: float, log_sd: float, attacks: Mapping[str, float]) -> Limit:
    """The limit between honest machines and `attacks`: smallest deviation by name of cheat, of those that count.

    Raises ConfigError "no-tolerance" where none would tell anybody from anybody: honest machines stray as far as the
    weakest cheat, or so unevenly that a hop that computes nothing (deviation 1) would be within the limit.
    """
    tau = tau_of(honest_max, log_mean, log_sd)
    weakest = min(attacks, key=lambda name: attacks[name])
    if honest_max >= attacks[weakest] or tau >= MOST_TAU:
        raise ConfigError(
            "no-tolerance",
            f"Honest machines stray by up to {honest_max:.2g} on this model, and {weakest} by {attacks[weakest]:.2g}: "
            "no limit tells them apart.",
            "Publish it as exact (`--profile exact`), or not at all: its weights depend on the order of sums.",
        )
    return Limit(tau, weakest, attacks[weakest], attacks[weakest] >= ATTACK_MARGIN * tau)


def calibrate(options: CalibrateOptions, say: Say) -> tuple[Manifest, dict[str, Any]]:
    """Measure, write the tolerance into the manifest; the manifest and the report whose hash it names.

    The weights root stays; the manifest's hash changes: calibrate before publishing. Raises ConfigError "bad-options",
    "not-float" for an exact model, which has no tolerance, or "no-tolerance" as `decide` does: the manifest then stays.
    """
    manifest = Manifest.load(options.directory)
    _check(manifest, options)
    ranges = hop_ranges(manifest.layers)
    fleet = [*options.fleet, *(native_machines() if has_integers(manifest) else ())]
    modes = tuple(TEXT_MODES if manifest.model_type in ENCODERS else MODES)
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        engines = [load_executor(options.directory, lo, hi) for lo, hi in ranges]
        given = collect(options, manifest, engines, say)
        references = {key: _reference(engines[int(key.split("/")[1])], x) for key, x in given.items()}
        inputs = work / "inputs.npz"
        np.savez(inputs, **given)  # type: ignore[arg-type]
        honest = _honest(options.directory, work, ranges, fleet, modes, inputs, references, say)
        attacks, noises = _cheats(
            manifest, CalibrationShop(options.directory, work, "float"), engines, given, references, say
        )
    logs = np.concatenate(honest.logs)
    if not len(logs):
        raise ConfigError("bad-options", "All machines gave the same bits: nothing was measured.", "Compare more.")
    mean, sd = float(logs.mean()), float(logs.std())
    limit = decide(honest.beyond, mean, sd, attacks)
    report = {
        "weights_root": manifest.weights_root,
        "ranges": ranges,
        "texts": [hashlib.sha256(path.read_bytes()).hexdigest() for path in options.texts],
        "machines": [machine.name for machine in fleet],
        "modes": list(modes),
        "honest_rows": honest.count,
        "honest_max": honest.beyond,
        "honest_max_at": honest.where,
        "log_mean": mean,
        "log_sd": sd,
        "cheats": attacks,
        "noises": noises,
        "tau": limit.tau,
        "rounding": ROUNDING,
    }
    evidence = hashlib.sha256(json.dumps(report, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    tolerance = Tolerance(
        tau=limit.tau,
        rounding=ROUNDING,
        honest_max=honest.beyond,
        honest_count=honest.count,
        log_mean=mean,
        log_sd=sd,
        attack_min=limit.attack_min,
        weakest_attack=limit.weakest,
        settings=tuple(f"{machine.name}: {', '.join(modes)}" for machine in fleet),
        evidence=evidence,
        slashable=limit.slashable,
        compute="float32",
    )
    calibrated = manifest.model_copy(update={"tolerance": tolerance})
    calibrated.save(options.directory)
    return calibrated, report


def _check(manifest: Manifest, options: CalibrateOptions) -> None:
    if manifest.profile != "float":
        raise ConfigError("not-float", "This is an exact model: its outputs have no tolerance.", "Nothing is to do.")
    if options.tokens < sum(_LENGTHS) or not options.texts:
        raise _too_short()


def has_integers(manifest: Manifest) -> bool:
    """Whether the published matrices are, in part, integers, which machines with and without native products, and with
    several kinds of those, multiply differently."""
    return any(tensor.dtype == "int8" or tensor.dtype in PACKED_BITS for tensor in manifest.tensors)


def _too_short() -> ConfigError:
    return ConfigError("bad-options", f"Calibration needs a text and {sum(_LENGTHS)} tokens of it.", "Give --text.")


def hop_ranges(layers: int) -> list[tuple[int, int]]:
    """Thirds of the model, its first layer alone, and the whole: short hops add least, long ones stray most."""
    parts = min(3, layers)
    bounds = [round(part * layers / parts) for part in range(parts + 1)]
    thirds = list(pairwise(bounds))
    return [*thirds, *(extra for extra in ((0, 1), (0, layers)) if extra not in thirds)]


def collect(
    options: CalibrateOptions, manifest: Manifest, engines: Sequence[Executor], say: Say
) -> dict[str, npt.NDArray[Any]]:
    """Inputs of every range, SET/RANGE/NUMBER-NAME: SET "text" from the texts, "stress" made to strain."""
    tokenizer = options.directory / "tokenizer.json"
    if not tokenizer.is_file():
        raise ModelError("no-tokenizer", f"{options.directory} has no tokenizer.json.", "Add the model's tokenizer.")
    text = "\n".join(path.read_text("utf-8", errors="replace") for path in options.texts)
    ids = np.array(open_tokenizer(tokenizer).encode(text).ids[: options.tokens], np.int32)
    if len(ids) < sum(_LENGTHS):
        raise _too_short()
    say(f"{len(ids):,} tokens, {len(engines)} ranges of layers")
    longest = min(_LENGTHS[-1], engines[0].max_positions)
    windows: list[npt.NDArray[np.int32]] = []
    at = 0
    while at < len(ids) - 1:
        size = min(_LENGTHS[len(windows) % len(_LENGTHS)], longest)
        windows.append(ids[at : at + size])
        at += size
    found: dict[str, npt.NDArray[Any]] = {}
    states: dict[int, list[npt.NDArray[Any]]] = {0: list(windows)}
    for engine in _chain(engines):
        states[engine.hi] = [prefilled(engine, x) for x in states[engine.lo]]
    for index, engine in enumerate(engines):
        for number, x in enumerate(states[engine.lo]):
            found[f"text/{index}/{number:04d}-text"] = x
        for number, (name, x) in enumerate(strained(states[engine.lo][0], manifest.vocab, len(states[engine.lo][0]))):
            found[f"stress/{index}/{number:04d}-{name}"] = x
    return found


def _chain(engines: Sequence[Executor]) -> Iterator[Executor]:
    """Engines that lead from the embedding to where the later ranges begin."""
    wanted = {engine.lo for engine in engines if engine.lo > 0}
    at = 0
    while wanted:
        step = next(engine for engine in engines if engine.lo == at and engine.hi in wanted)
        yield step
        wanted.discard(step.hi)
        at = step.hi


def prefilled(engine: Executor, x: npt.NDArray[Any]) -> Rows:
    return engine.step([StepItem(engine.new_sequence(), x)])[0]


def _reference(engine: Executor, x: npt.NDArray[Any]) -> tuple[Rows, Rows]:
    """(the verifier's rows, what they were added to)."""
    return prefilled(engine, x), engine.embed(x) if engine.has_embedding else np.asarray(x, np.float32)


def deviations(rows: Rows, ours: Rows, x: Rows) -> tuple[Deviations, Deviations]:
    """||y - y'|| / ||y' - x|| of every row, and the same with the rounding allowance taken off the numerator."""
    wide = ours.astype(np.float64)
    off = np.linalg.norm(rows.astype(np.float64) - wide, axis=1)
    update = np.linalg.norm(wide - x.astype(np.float64), axis=1)
    update = np.maximum(update, np.finfo(np.float64).tiny)
    return off / update, np.maximum(off - ROUNDING * np.linalg.norm(wide, axis=1), 0.0) / update


def _honest(
    directory: Path,
    work: Path,
    ranges: Sequence[tuple[int, int]],
    fleet: Sequence[Machine],
    modes: Sequence[str],
    inputs: Path,
    references: dict[str, tuple[Rows, Rows]],
    say: Say,
) -> Spread:
    spread = Spread()
    for number, machine in enumerate(fleet):
        say(f"honest machine {number + 1} of {len(fleet)}: {machine.name}")
        made = compute(directory, ranges, work, machine, inputs, ["text", "stress"], _DECODED, modes=modes)
        with np.load(made) as outputs:
            for name in outputs.files:
                mode, key = name.split("/", 1)
                plain, beyond = deviations(outputs[name], *references[key])
                label = f"{machine.name}, {mode}, {key.split('-', 1)[1]}"
                spread.add(label, plain, beyond, natural=key.startswith("text/"))
    return spread


def _cheats(
    manifest: Manifest,
    shop: CalibrationShop,
    engines: Sequence[Executor],
    given: dict[str, npt.NDArray[Any]],
    references: dict[str, tuple[Rows, Rows]],
    say: Say,
) -> tuple[dict[str, float], dict[str, float]]:
    """Smallest deviation over all jobs, of a job's worst row (that is what an audit goes by), by name: of the cheats
    that count, and of the noises that are reported only."""
    found: tuple[dict[str, float], dict[str, float]] = ({}, {})
    for cheat in cheats(manifest):
        say(f"cheat: {cheat.name}")
        smallest = math.inf
        for index, engine in enumerate(engines):
            cheating = armed(cheat, shop, engine)
            if cheating is None:
                continue
            for key in (key for key in given if key.startswith(f"text/{index}/")):
                plain, _ = deviations(prefilled(cheating, given[key]), *references[key])
                worst = float(plain.max())
                # Rows that are not finite are no bytes that anybody can commit to.
                smallest = min(smallest, worst if math.isfinite(worst) else math.inf)
        if smallest < math.inf:
            found[0 if cheat.counts else 1][cheat.name] = smallest
    shop.clear()
    return found
