"""How long programs take to start, and what memory that needs: `efedllm bench startup`."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

Say = Callable[[str], None]

BASE = "python -c pass"
# What a start may take of the processor, in seconds, beside BASE.
TARGETS = {"efedllm --help": 0.4, "efedllm wallet balance": 1.0}
# Nothing listens on port 1 of the loopback interface.
NO_CHAIN = "http://127.0.0.1:1"
# Starts the program from a small process: the kernel counts the peak of whoever starts a program as the program's own.
LAUNCHER = """
import os, sys, time
out = os.open(os.devnull, os.O_WRONLY)
files = [(os.POSIX_SPAWN_DUP2, out, 1), (os.POSIX_SPAWN_DUP2, out, 2)]
started = time.perf_counter()
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=files)
_, status, used = os.wait4(pid, 0)
wall = time.perf_counter() - started
print(wall, used.ru_utime + used.ru_stime, used.ru_maxrss, os.waitstatus_to_exitcode(status))
"""


@dataclass(frozen=True)
class Start:
    """One run of a program from its start to its end: seconds, seconds of processor time, bytes at the peak."""

    wall: float
    cpu: float
    peak: int


def startup(
    turns: Annotated[int, typer.Option(min=3, help="How often each program is started.")] = 7,
    out: Annotated[Path | None, typer.Option(help="Write the JSON to this file too.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Time, processor time and memory of starting commands, of importing the client, of loading a model."""
    console = Console(stderr=True)
    result = measure(turns, lambda text: console.print(f"[dim]·[/dim] {text}"))
    text = json.dumps(result, indent=1)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n")
    if as_json:
        print(text)
        return
    table = Table(title=f"Start to end, median of {turns}, programs take turns")
    for column in ("program", "seconds", "processor", f"x {BASE}", "target", "peak MB"):
        table.add_column(column, justify="left" if column == "program" else "right")
    for row in result["programs"]:
        target = "" if row["cpu_target"] is None else str(row["cpu_target"])
        values = (row["wall_s"], row["cpu_s"], row["cpu_of_base"], target, row["peak_mb"])
        table.add_row(row["name"], *map(str, values))
    Console().print(table)


def measure(turns: int, say: Say) -> dict[str, Any]:
    """Medians over `turns` of every program; each turn starts all of them, so that other work hits all alike."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        say("compressing the model to load")
        programs = prepare(folder)
        starts: dict[str, list[Start]] = {name: [] for name in programs}
        for turn in range(turns + 1):
            say(f"turn {turn} of {turns}" if turn else "a turn that fills the caches")
            for name, argv in programs.items():
                once = run(argv, folder)
                if turn:
                    starts[name].append(once)
    base = statistics.median(one.cpu for one in starts[BASE])
    return {
        "turns": turns,
        "python": sys.version.split()[0],
        "programs": [summary(name, found, base) for name, found in starts.items()],
    }


def summary(name: str, starts: list[Start], base: float) -> dict[str, Any]:
    """A row of the result; `base`: seconds of processor time of BASE."""
    cpu = statistics.median(one.cpu for one in starts)
    return {
        "name": name,
        "wall_s": round(statistics.median(one.wall for one in starts), 3),
        "cpu_s": round(cpu, 3),
        "cpu_of_base": round(cpu / base, 1),
        "cpu_target": TARGETS.get(name),
        "peak_mb": round(statistics.median(one.peak for one in starts) / 1e6, 1),
    }


def prepare(folder: Path) -> dict[str, list[str]]:
    """The programs by name, and in `folder` what they read: a wallet, a deployment, a published model."""
    from efedllm.chain import keystore
    from efedllm.chain.artifacts import CONTRACTS
    from efedllm.chain.deployment import DeployedContract, Deployment
    from efedllm_deploy.bundled import ModelChoice, ensure_model

    wallet, password, model = folder / "wallet.json", folder / "password", folder / "model"
    password.write_text("startup")
    address = keystore.create(wallet, "startup", light=True)
    contract = DeployedContract(address=address, abi_sha256="", block=0, tx="")
    Deployment(
        chain_id=1337,
        genesis=0,
        epoch_length=60,
        block=0,
        deployer=address,
        contracts=dict.fromkeys(CONTRACTS, contract),
        compiler="",
        profile="local",
    ).save(folder / "1337.json")
    asyncio.run(ensure_model(ModelChoice(), model, folder / "compress.log"))
    python, efedllm = [sys.executable], [sys.executable, "-m", "efedllm_client"]
    account = ("--keystore", str(wallet), "--password-file", str(password))
    load = (
        "import sys; from efedllm.models.manifest import Manifest; from efedllm.engine.select import load_executor; "
        "from pathlib import Path; p = Path(sys.argv[1]); load_executor(p, 0, Manifest.load(p).layers)"
    )
    return {
        BASE: [*python, "-c", "pass"],
        "efedllm --help": [*efedllm, "--help"],
        "efedllm generate --help": [*efedllm, "generate", "--help"],
        # Everything up to the first request, which nobody answers.
        "efedllm wallet balance": [
            *(*efedllm, "wallet", "balance", "--rpc", NO_CHAIN, "--deployment", str(folder / "1337.json"), *account)
        ],
        "import efedllm_client": [*python, "-c", "import efedllm_client"],
        "from efedllm_client import Client": [*python, "-c", "from efedllm_client import Client"],
        "load a whole model, exact profile": [*python, "-c", load, str(model)],
    }


def run(argv: list[str], folder: Path) -> Start:
    """Run a program to its end. Its exit code is 0, or 1 where the chain is missing."""
    settings = {"EFEDLLM_HOME": str(folder / "home"), "EFEDLLM_RPC_BUDGET": "0.01", "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-S", "-c", LAUNCHER, *argv]
    done = subprocess.run(launcher, env={**os.environ, **settings}, capture_output=True, text=True, check=True)
    wall, cpu, peak, code = done.stdout.split()[-4:]
    wanted = 1 if NO_CHAIN in argv else 0
    if int(code) != wanted:
        raise RuntimeError(f"{' '.join(argv)} ended with {code}")
    # Linux counts kilobytes, macOS bytes.
    return Start(float(wall), float(cpu), int(peak) * (1 if sys.platform == "darwin" else 1024))
