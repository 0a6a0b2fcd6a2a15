"""The programs of a local chain, Ganache and Anvil: those of the checkout, else installed once into the home folder."""

from __future__ import annotations

import asyncio
import platform
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Literal

from efedllm.checkout import find_project_root
from efedllm.errors import ConfigError
from efedllm.settings import Settings
from efedllm_deploy.process import ProcessError, spawn

Kind = Literal["ganache", "anvil"]

# npm package and version of each program, as in package.json.
PACKAGES: dict[Kind, tuple[str, str]] = {"ganache": ("ganache", "7.9.2"), "anvil": ("@foundry-rs/anvil", "1.7.1")}
FOLDER = "chain-programs"  # in the home folder
INSTALL_SECONDS = 900.0


def program(kind: Kind) -> list[str]:
    """The start of the command line of a chain program.

    Raises ConfigError "no-node-modules" when it is neither in the checkout nor in the home folder.
    """
    for modules in _candidates(kind):
        found = _in(modules, kind)
        if found is not None:
            return found
    raise ConfigError(
        "no-node-modules",
        f"The program of the local chain, {kind}, is not installed.",
        f"`efedllm up --chain {kind}` installs it; in a checkout run `npm install`.",
    )


async def ensure_program(kind: Kind) -> None:
    """Install a chain program with npm into <home>/chain-programs, unless it is there or in the checkout.

    `home` is that of the settings, ~/.efedllm by default: all networks of this user share the program. Raises
    ConfigError "no-node-js", or ProcessError when npm fails.
    """
    if any(_in(modules, kind) for modules in _candidates(kind)):
        return
    name, version = PACKAGES[kind]
    target = _home_folder(kind)
    if shutil.which("npm") is None:
        raise ConfigError(
            "no-node-js",
            f"The local chain {kind} needs Node.js 20 or newer with npm.",
            "Install it from https://nodejs.org, or pass the RPC address of a running chain as --chain.",
        )
    print(f"installing {name} {version} into {target}, once", file=sys.stderr, flush=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Renamed when complete: another process never sees half of it.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".installing-") as made:
        folder = Path(made) / target.name
        folder.mkdir()
        options = ("--no-audit", "--no-fund", "--no-package-lock", "--loglevel=error")
        argv = ["npm", "install", "--prefix", str(folder), *options, f"{name}@{version}"]
        child = await spawn("npm install", argv, target.parent / "npm.log")
        try:
            async with asyncio.timeout(INSTALL_SECONDS):
                code = await child.process.wait()
        except TimeoutError as error:
            raise ProcessError("process-slow", "npm install took too long.", f"See {child.log}") from error
        finally:
            await child.stop(grace=2.0)
        if code != 0 or _in(folder / "node_modules", kind) is None:
            raise child.died(f"while installing {name}")
        try:
            folder.rename(target)
        except OSError:
            # Another process was faster.
            program(kind)


def _candidates(kind: Kind) -> list[Path]:
    """The node_modules folders to look in."""
    checkout = find_project_root()
    own = [checkout / "node_modules"] if checkout is not None else []
    return [*own, _home_folder(kind) / "node_modules"]


def _home_folder(kind: Kind) -> Path:
    return Settings.load(network=False).home / FOLDER / f"{kind}-{PACKAGES[kind][1]}"


def _in(modules: Path, kind: Kind) -> list[str] | None:
    """How to start the program from a node_modules folder; None when it is not there."""
    if kind == "ganache":
        script = modules / "ganache" / "dist" / "node" / "cli.js"
        return ["node", str(script)] if script.is_file() else None
    # The npm launcher starts the real program as a child of its own, which a SIGKILL would leave behind.
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    found = sorted((modules / "@foundry-rs").glob("anvil-*/bin/anvil*"))
    fitting = [path for path in found if platform.system().lower() in str(path) and machine in str(path)]
    return [str((fitting or found)[0])] if found else None
