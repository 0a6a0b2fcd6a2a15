"""The native libraries give the same bytes on 64-bit ARM, which an emulator runs.

    apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user
    .venv/bin/pytest tests/kernels/test_portable.py

portable.c runs every function on the same numbers, on every instruction set of its processor. What it prints on x86 is
what the other tests compare with torch and with the specification.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.model_fixtures import ROOT

KERNELS = ROOT / "efedllm" / "kernels"
PROGRAM = Path(__file__).with_name("portable.c")
# Those of setup.py.
FLAGS = ("-O3", "-std=gnu11", "-ffp-contract=off", "-fno-math-errno", "-Wno-psabi", "-pthread")
CROSS, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"


def lines_of(folder: Path, compiler: str, *run: str) -> list[str]:
    """What the program prints, built by `compiler` and started by `run`."""
    program = folder / compiler
    sources = [*sorted((KERNELS / "products").glob("*.c")), *sorted(KERNELS.glob("*.c")), PROGRAM]
    command = [compiler, *FLAGS, "-static", f"-I{KERNELS / 'products'}", "-o", str(program), *map(str, sources), "-lm"]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    done = subprocess.run([*run, str(program)], check=True, capture_output=True, text=True, timeout=300)
    return done.stdout.splitlines()


@pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in ("cc", CROSS, EMULATOR)),
    reason="needs a compiler and an emulator of 64-bit ARM",
)
def test_arm_gives_the_bytes_of_this_processor(tmp_path: Path) -> None:
    here = lines_of(tmp_path, "cc")
    arm = lines_of(tmp_path, CROSS, EMULATOR)
    kinds = {line.split()[0] for line in arm}
    assert kinds >= {
        "rows",
        "exact",
        "expand",
        "floats",
        "norm",
        "heads",
        "attend",
        "gated",
        "gelu",
        "sample",
        "keccak",
    }
    # Instruction sets print one line each of the same words, so that any difference is a line of its own.
    assert sorted(set(arm)) == sorted(set(here))
    assert not any(line.endswith("far") for line in arm)
    # ARM has two sets: its own and plain C.
    assert arm.count(next(line for line in arm if line.startswith("exact"))) == 2
