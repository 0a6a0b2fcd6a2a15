"""The library is built where there is a compiler; everything goes on without it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from efedllm.kernels.keccak import load_keccak
from efedllm.kernels.native import Variant, load_library
from efedllm.kernels.steps import load_steps
from tests.model_fixtures import ROOT


def build(folder: Path, compiler: str | None) -> Path:
    """Runs the build on a copy of the sources; where the library is if there is one."""
    (folder / "efedllm").mkdir()
    shutil.copy(ROOT / "setup.py", folder)
    sources = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "efedllm" / "kernels", folder / "efedllm" / "kernels", ignore=sources)
    environment = os.environ | ({} if compiler is None else {"CC": compiler})
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder / "efedllm" / "kernels" / "libproducts.so"


def test_without_a_compiler_the_installation_succeeds_without_the_library(tmp_path: Path) -> None:
    assert not build(tmp_path, "/nonexistent/cc").exists()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By this machine's compiler."""
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler")
    return build(tmp_path_factory.mktemp("build"), None)


def test_with_a_compiler_a_library_that_loads_is_built(built: Path) -> None:
    assert load_library(built).variants[-1] is Variant.PLAIN
    # Put there in one step, from beside.
    assert not list(built.parent.glob("*.tmp"))


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_with_a_compiler_this_installation_has_the_libraries_of_its_sources() -> None:
    """Tests of them are skipped without: an installation older than the sources must not pass by that."""
    folder = ROOT / "efedllm" / "kernels"
    for load, name in ((load_library, "products"), (load_steps, "steps"), (load_keccak, "keccak")):
        try:
            load(folder / f"lib{name}.so")
        except OSError as error:
            pytest.fail(f"{error}; build them again: pip install --no-deps --no-build-isolation -e .")


@pytest.mark.parametrize(
    ("switch", "said"), [("0", "None switched off"), ("plain", "PLAIN"), ("avx1024", "bad-option")]
)
def test_a_switch_turns_it_off_or_names_an_instruction_set(switch: str, said: str) -> None:
    code = (
        "from efedllm.errors import EfedError\n"
        "from efedllm.kernels.native import library\n"
        "try:\n"
        "    found = library()\n"
        "    print(found and found.variants[0].name)\n"
        "except EfedError as error:\n"
        "    print(error.code)\n"
    )
    if switch != "0" and not (ROOT / "efedllm" / "kernels" / "libproducts.so").exists():
        pytest.skip("no native kernels in this installation")
    environment = os.environ | {"EFEDLLM_NATIVE": switch}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for word in said.split(" ", 1):
        assert word in done.stdout + done.stderr


def test_a_library_of_other_sources_is_not_called(built: Path, tmp_path: Path) -> None:
    # Another path: a library that this process has open already is not opened again.
    built = shutil.copytree(built.parent, tmp_path / "kernels") / built.name
    for load, name in ((load_library, "libproducts"), (load_steps, "libsteps"), (load_keccak, "libkeccak")):
        load(built.with_name(f"{name}.so"))
    header = built.parent / "products" / "products.h"
    header.write_text(header.read_text() + "/* newer */\n")
    for load, name in ((load_library, "libproducts"), (load_steps, "libsteps"), (load_keccak, "libkeccak")):
        with pytest.raises(OSError, match="other sources"):
            load(built.with_name(f"{name}.so"))
    # One of before there were stamps.
    subprocess.run(["cc", "-shared", "-fPIC", "-x", "c", "-o", built, "-"], input=b"int old;", check=True)
    with pytest.raises(OSError, match="other sources"):
        load_library(built)
