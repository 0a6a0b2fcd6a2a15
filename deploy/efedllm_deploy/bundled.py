"""The bundled model in published form, compressed once and kept."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path

from efedllm.chain.deployment import write_json
from efedllm.checkout import find_project_root
from efedllm.errors import ModelError
from efedllm.models.manifest import Manifest
from efedllm_deploy.process import ProcessError, spawn
from efedllm_deploy.supervisor import THREADS

COMPRESS_SECONDS = 900.0
NAME = "pylib-7m"


def bundled_checkpoint() -> Path:
    """Folder of the transformers checkpoint that comes with the project: of the checkout, else of the wheel."""
    checkout = find_project_root()
    return checkout / "models" / NAME if checkout is not None else Path(str(files("efedllm_deploy"))) / NAME


@dataclass(frozen=True)
class ModelChoice:
    """Which model a local network serves, and how it is compressed (see CompressOptions and settle_profile)."""

    source: str = ""
    keep: float = 0.9
    quant: str = "int8"
    method: str = "whiten"
    profile: str = "auto"

    @classmethod
    def of(
        cls,
        source: str,
        keep: float | None = None,
        quant: str = "int8",
        method: str | None = None,
        profile: str = "auto",
    ) -> ModelChoice:
        """The choice for a checkpoint; without `source` the bundled one, which has the text that "whiten" needs."""
        bundled = cls()
        return cls(
            source,
            keep=keep if keep is not None else (1.0 if source else bundled.keep),
            quant=quant,
            method=method or ("truncate" if source else bundled.method),
            profile=profile,
        )

    def resolved(self) -> str:
        """Folder or hub id of the checkpoint; the bundled one by default."""
        return self.source or str(bundled_checkpoint())

    def key(self) -> str:
        """Changes when the result would."""
        values = {**asdict(self), "source": self.resolved(), "stamp": _stamp(Path(self.resolved()))}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _stamp(folder: Path) -> list[tuple[str, int, int]]:
    """Sizes and times of a local checkpoint's files, so that a changed one is compressed again."""
    if not folder.is_dir():
        return []
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]


def cached(choice: ModelChoice, out: Path) -> Manifest | None:
    """The manifest in `out` when it was made by the same choice."""
    try:
        stamp = json.loads((out.parent / f"{out.name}.json").read_text())
        if stamp["key"] != choice.key():
            return None
        return Manifest.load(out)
    except (OSError, ValueError, KeyError, TypeError, ModelError):
        return None


async def ensure_model(choice: ModelChoice, out: Path, log: Path) -> Manifest:
    """The published model in `out`, compressed now unless it is there. In a process of its own: torch stays out of
    this one. Raises ModelError, or ProcessError.
    """
    found = cached(choice, out)
    if found is not None:
        return found
    argv = [
        *(sys.executable, "-m", "efedllm_deploy.model_cli", "compress", "--model", choice.resolved()),
        *("--out", str(out), "--keep", str(choice.keep), "--quant", choice.quant, "--method", choice.method),
        *("--profile", choice.profile, "--json"),
    ]
    child = await spawn("model compress", argv, log, env=THREADS)
    try:
        async with asyncio.timeout(COMPRESS_SECONDS):
            code = await child.process.wait()
    except TimeoutError as error:
        raise ProcessError("process-slow", "Compressing the model took too long.", f"See {log}") from error
    finally:
        await child.stop(grace=2.0)
    if code != 0:
        raise child.died("while compressing the model")
    manifest = Manifest.load(out)
    write_json(out.parent / f"{out.name}.json", {"key": choice.key(), "weights_root": manifest.weights_root})
    return manifest
