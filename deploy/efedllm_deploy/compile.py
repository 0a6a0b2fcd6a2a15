"""Compiles the contracts and writes the artifacts that every role loads, and the typed Python classes for them.

Only this step needs a compiler. `python -m efedllm_deploy.compile` writes the files; `--check` fails when the committed
files differ from the sources.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import solcx
from solcx.exceptions import SolcError, SolcNotInstalled

from efedllm.chain.artifacts import CONTRACTS
from efedllm.checkout import project_root
from efedllm.errors import ConfigError
from efedllm_deploy.contract_types import render_contracts

ROOT = project_root()
NODE_MODULES = ROOT / "node_modules"
SHIM = ROOT / "tools" / "solc-shim.js"
CHAIN = ROOT / "efedllm" / "chain"
ARTIFACTS = CHAIN / "artifacts"

SOLC_VERSION = "0.8.30"
# The same settings stand in foundry.toml and hardhat.config.js. Neither metadata nor its hash is appended, so that the
# bytecode depends on nothing but the sources.
SETTINGS: dict[str, Any] = {
    "optimizer": {"enabled": True, "runs": 10000},
    "evmVersion": "shanghai",
    "viaIR": False,
    "metadata": {"bytecodeHash": "none", "appendCBOR": False},
    "outputSelection": {"*": {"*": ["abi", "evm.bytecode.object", "evm.deployedBytecode.object"]}},
}

_IMPORT = re.compile(r"""^\s*import\s[^;]*?["']([^"']+)["']\s*;""", re.MULTILINE)
_VERSION = re.compile(r"(\d+\.\d+\.\d+\+commit\.[0-9a-f]+)")


@dataclass(frozen=True)
class Compiler:
    """A compiler to run, and its version without the platform: all builds of one version give the same bytecode."""

    binary: Path
    version: str


def find_compiler() -> Compiler:
    """Returns the pinned solc: native from PATH or py-solc-x when there is one, else the npm package behind the shim.

    Raises ConfigError when neither is there.
    """
    candidates: list[Path] = []
    on_path = shutil.which("solc")
    if on_path:
        candidates.append(Path(on_path))
    with contextlib.suppress(SolcNotInstalled):
        candidates.append(solcx.install.get_executable(SOLC_VERSION))
    candidates.append(SHIM)
    for binary in candidates:
        version = _version_of(binary)
        if version is not None and version.startswith(f"{SOLC_VERSION}+"):
            return Compiler(binary, version)
    raise ConfigError(
        "no-solc", f"No solc {SOLC_VERSION} was found.", "Run `npm install` (it needs Node 20 or newer) and try again."
    )


def _version_of(binary: Path) -> str | None:
    try:
        done = subprocess.run([str(binary), "--version"], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    found = _VERSION.search(done.stdout)
    return found.group(1) if found else None


def collect_sources(roots: Iterable[str] | None = None) -> dict[str, dict[str, str]]:
    """Returns every source that `roots` reach, by default the contracts, by the name under which it is imported.

    Handing all contents over keeps the compiler off the file system, whose layout differs between solc builds.
    """
    pending = list(roots) if roots is not None else [f"contracts/{name}.sol" for name in CONTRACTS]
    sources: dict[str, dict[str, str]] = {}
    while pending:
        name = pending.pop()
        if name in sources:
            continue
        path = (ROOT if name.startswith("contracts/") else NODE_MODULES) / name
        try:
            content = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise ConfigError(
                "missing-source", f"The contracts import {name}, which is missing.", "Run `npm install` and try again."
            ) from None
        sources[name] = {"content": content}
        pending.extend(_resolve(name, target) for target in _IMPORT.findall(content))
    return dict(sorted(sources.items()))


def _resolve(importer: str, target: str) -> str:
    if not target.startswith("."):
        return target
    parts: list[str] = list(PurePosixPath(importer).parent.parts)
    for part in PurePosixPath(target).parts:
        if part == "..":
            parts.pop()
        elif part != ".":
            parts.append(part)
    return "/".join(parts)


def compile_contracts(compiler: Compiler | None = None) -> dict[str, dict[str, Any]]:
    """Compiles all contracts and returns the artifacts by contract name.

    Raises ConfigError with the compiler's message when a source does not compile.
    """
    compiler = compiler or find_compiler()
    request = {"language": "Solidity", "sources": collect_sources(), "settings": SETTINGS}
    try:
        output = solcx.compile_standard(request, solc_binary=compiler.binary)
    except SolcError as error:
        raise ConfigError("compile-failed", str(error).strip(), "Fix the source named above.") from error
    return {name: _artifact(name, output["contracts"][f"contracts/{name}.sol"][name], compiler) for name in CONTRACTS}


def _artifact(name: str, compiled: dict[str, Any], compiler: Compiler) -> dict[str, Any]:
    abi = compiled["abi"]
    return {
        "contractName": name,
        "abi": abi,
        "bytecode": "0x" + compiled["evm"]["bytecode"]["object"],
        "deployedBytecode": "0x" + compiled["evm"]["deployedBytecode"]["object"],
        "abiSha256": abi_sha256(abi),
        "compiler": compiler.version,
    }


def abi_sha256(abi: list[dict[str, Any]]) -> str:
    """Returns the hex SHA-256 of the ABI as canonical JSON: sorted keys, no spaces."""
    return hashlib.sha256(json.dumps(abi, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def render(artifacts: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Returns the text of every generated file by its path below efedllm/chain.

    Raises ConfigError "unsupported-abi" for an ABI that the typed classes cannot express.
    """
    files = {
        f"artifacts/{name}.json": json.dumps(artifact, indent=1, sort_keys=True) + "\n"
        for name, artifact in artifacts.items()
    }
    return {**files, "contracts.py": render_contracts(artifacts)}


def write(artifacts: dict[str, dict[str, Any]], directory: Path = CHAIN) -> None:
    """Writes the generated files below `directory`."""
    for name, text in render(artifacts).items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def stale(artifacts: dict[str, dict[str, Any]], directory: Path = CHAIN) -> list[str]:
    """Returns the generated files that are missing below `directory` or differ."""
    return [
        name
        for name, text in render(artifacts).items()
        if not (path := directory / name).is_file() or path.read_text(encoding="utf-8") != text
    ]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m efedllm_deploy.compile", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare with the committed files and write nothing")
    arguments = parser.parse_args(argv)
    try:
        artifacts = compile_contracts()
        if arguments.check:
            different = stale(artifacts)
            if different:
                raise ConfigError(
                    "stale-artifacts",
                    f"These files in efedllm/chain differ from the sources: {', '.join(different)}.",
                    "Run `make contracts` (`python -m efedllm_deploy.compile`) and commit the result.",
                )
        else:
            write(artifacts)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
