"""Builds the distributions from the sources, and environments that hold a wheel and what it declares to need."""

from __future__ import annotations

import email
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

from efedllm.checkout import project_root

ROOT = project_root()
NOT_SOURCES = shutil.ignore_patterns(
    *(".*", "node_modules", "__pycache__", "build", "docs", "tests", "*.so", "*.egg-info", "results")
)


def run(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A program with none of the checkout's paths in its environment."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("EFEDLLM_", "PYTHON"))}
    return subprocess.run(
        words, cwd=cwd, env={**kept, **environment}, capture_output=True, text=True, timeout=250, check=False
    )


def checked(*words: str, cwd: Path, **environment: str) -> str:
    """What a program that succeeds prints."""
    done = run(*words, cwd=cwd, **environment)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


def build_sdist(folder: Path) -> Path:
    """The source distribution, from a copy of the sources."""
    copy, out = folder / "sources", folder / "sdist"
    shutil.copytree(ROOT, copy, ignore=NOT_SOURCES)
    program = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    checked(sys.executable, "-c", program, str(out), cwd=copy)
    (made,) = out.iterdir()
    return made


def build_wheel(sdist: Path, folder: Path, *, native: bool) -> tuple[Path, str]:
    """A wheel from the source distribution alone, and the log of its build.

    `native`: with the checkout's C libraries, which tests/kernels compiles and compares with their sources; without,
    as on a machine that has no compiler.
    """
    folder.mkdir()
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (sources,) = folder.iterdir()
    if native:
        platform = checked(sys.executable, "-c", "import sysconfig; print(sysconfig.get_platform())", cwd=folder)
        target = sources / f"build/lib.{platform.strip()}-{sys.implementation.cache_tag}/efedllm/kernels"
        target.mkdir(parents=True)
        for library in (ROOT / "efedllm" / "kernels").glob("lib*.so"):
            shutil.copyfile(library, target / library.name)
    pip = (sys.executable, "-m", "pip", "wheel", "-v", "--no-deps", "--no-index", "--no-build-isolation")
    done = run(*pip, "-w", str(folder / "wheel"), str(sources), cwd=folder, CC="/nonexistent/cc")
    assert done.returncode == 0, done.stderr[-3000:]
    (wheel,) = (folder / "wheel").iterdir()
    return wheel, done.stdout + done.stderr


def metadata(wheel: Path) -> email.message.Message:
    """The METADATA file of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def install(wheel: Path, folder: Path) -> Path:
    """A new environment with the wheel and, linked from this one, the packages that it declares and theirs.

    Returns the folder of its programs. Nothing else of this environment is there, torch in particular.
    """
    checked(sys.executable, "-m", "venv", "--without-pip", str(folder), cwd=folder.parent)
    python = str(folder / "bin" / "python")
    pip = (sys.executable, "-m", "pip", "--python", python)
    checked(*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel), cwd=folder)
    program = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(checked(python, "-c", program, cwd=folder).strip())
    for name in closure([Requirement(text) for text in metadata(wheel).get_all("Requires-Dist") or []]):
        link(name, site)
    checked(*pip, "check", cwd=folder)
    return folder / "bin"


def closure(wanted: list[Requirement]) -> set[str]:
    """The distributions that `wanted` ask for, without their extras, and in turn what these need."""
    found: set[tuple[str, frozenset[str]]] = set()
    pending = [(one, frozenset[str]()) for one in wanted]
    while pending:
        requirement, extras = pending.pop()
        marker = requirement.marker
        if marker is not None and not any(marker.evaluate({"extra": extra}) for extra in extras or {""}):
            continue
        one = (requirement.name, frozenset(requirement.extras))
        if one not in found:
            found.add(one)
            try:
                needs = distribution(requirement.name).requires or []
            except PackageNotFoundError as error:
                raise AssertionError(f"{requirement.name} is needed and not installed here") from error
            pending += [(Requirement(text), one[1]) for text in needs]
    return {name for name, _ in found}


def link(name: str, site: Path) -> None:
    """Put an installed distribution into another environment."""
    installed = distribution(name)
    for top in {file.parts[0] for file in installed.files or []} - {"..", "__pycache__"}:
        if not (site / top).exists():
            (site / top).symlink_to(Path(str(installed.locate_file(top))))
