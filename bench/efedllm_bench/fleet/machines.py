"""Honest machines that differ in instruction set, threads and attention, each a process that computes given inputs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from efedllm.kernels.native import SWITCH, library
from efedllm_bench.fleet.worker import MODES

CAPABILITIES = ("default", "avx2", "avx512")
WORKER_SECONDS = 600


@dataclass(frozen=True)
class Machine:
    """One kind of honest machine.

    threads: of torch; capability: the most of ATEN_CPU_CAPABILITY, "default" for all that the processor has; eager:
    attention as the textbook has it instead of torch's fused one; native: the value of EFEDLLM_NATIVE for products with
    integer weights, "" for the best that the machine has.
    """

    threads: int
    capability: str
    eager: bool
    native: str = ""

    @property
    def name(self) -> str:
        """For reports."""
        native = "" if not self.native else ", no native products" if self.native == "0" else f", native {self.native}"
        return f"{self.threads} thread(s), {self.capability}, {'eager' if self.eager else 'sdpa'}{native}"

    @property
    def environment(self) -> dict[str, str]:
        """Environment of the process that plays the machine."""
        # Threads that spin while they wait starve each other where the cores are shared.
        known = {**os.environ, "OMP_NUM_THREADS": str(self.threads), "OMP_WAIT_POLICY": "PASSIVE"}
        if self.capability != "default":
            known["ATEN_CPU_CAPABILITY"] = self.capability
        if self.native:
            known[SWITCH] = self.native
        return known


def machines(*, eager: bool, quick: bool) -> list[Machine]:
    """The fleet: every pair of settings of threads, instruction set and attention occurs on some machine.

    `eager`: half of them with the textbook's attention, which changes nothing in the exact profile. `quick`: two
    instruction sets only.
    """
    capabilities = CAPABILITIES[:2] if quick else CAPABILITIES
    found = []
    for number, capability in enumerate(capabilities):
        for threads in (1, 2):
            found.append(Machine(threads, capability, eager and (number + threads) % 2 == 0))
    return found


def native_machines() -> list[Machine]:
    """One machine for each slower way to multiply integer weights: every other instruction set of the native products
    here, and none, as on a machine without a compiler.
    """
    found = library()
    slower = found.variants[1:] if found is not None else ()
    ways = [*(variant.name.lower() for variant in slower), *(("0",) if found is not None else ())]
    return [Machine(1, "default", number % 2 == 0, way) for number, way in enumerate(ways)]


def compute(
    published: Path,
    ranges: Sequence[tuple[int, int]],
    work: Path,
    machine: Machine,
    inputs: Path,
    sets: list[str],
    decoded: int,
    without: Sequence[tuple[str, str]] = (),
    modes: Iterable[str] = MODES,
) -> Path:
    """Run one machine over inputs; path of an .npz of rows, keys MODE/SET/RANGE/NAME.

    published: folder of the model; ranges: of layers, by RANGE; work: folder for the task and the rows; inputs: .npz
    with keys SET/RANGE/NAME; sets: those of SET to compute; decoded: inputs of each set and range that it also decodes
    position by position; without: pairs (set, mode) to leave out; modes: keys of worker.MODES or worker.TEXT_MODES.
    Raises CalledProcessError or TimeoutExpired.
    """
    out, task = work / "fleet-out.npz", work / "fleet-task.json"
    task.write_text(
        json.dumps(
            {
                "threads": machine.threads,
                "eager": machine.eager,
                "published": str(published),
                "ranges": list(ranges),
                "inputs": str(inputs),
                "out": str(out),
                "sets": sets,
                "modes": list(modes),
                "limits": {"decode": decoded},
                "without": list(without),
            }
        )
    )
    subprocess.run(
        [sys.executable, "-m", "efedllm_bench.fleet.worker", str(task)],
        env=machine.environment,
        check=True,
        timeout=WORKER_SECONDS,
    )
    return out
