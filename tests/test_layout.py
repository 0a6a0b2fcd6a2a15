"""The import rules of the house: who may import whom, and that a client needs no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from efedllm.checkout import project_root

ROOT = project_root()
ROLES = ("efedllm_node", "efedllm_verifier", "efedllm_client", "efedllm_deploy")
HEAVY = ("torch", "transformers", "safetensors", "huggingface_hub")
TORCH_FREE = ("efedllm_client", "efedllm/chain", "efedllm/commitments", "efedllm/wire")
TORCH_FREE_FILES = (
    "efedllm/errors.py",
    "efedllm/logs.py",
    "efedllm/models/manifest.py",
    "efedllm/models/source.py",
    "efedllm/models/tensors.py",
    "efedllm/models/tokenizer.py",
    "efedllm/sampling/float.py",
    "efedllm/settings.py",
)


def folder(package: str) -> Path:
    """Where a package lies: those of a role lie in the folder of that role."""
    if not package.startswith("efedllm_"):
        return ROOT / package
    return ROOT / package.removeprefix("efedllm_") / package


def sources(package: str) -> list[Path]:
    return sorted(folder(package).rglob("*.py"))


def imported_roots(path: Path) -> set[str]:
    """Top-level packages that a file imports, at any depth of the code."""
    tree = ast.parse(path.read_text(), filename=str(path))
    roots: set[str] = set()
    for item in ast.walk(tree):
        if isinstance(item, ast.Import):
            roots.update(alias.name.split(".")[0] for alias in item.names)
        elif isinstance(item, ast.ImportFrom) and item.module and item.level == 0:
            roots.add(item.module.split(".")[0])
    return roots


@pytest.mark.parametrize("role", ROLES)
def test_no_role_imports_another(role: str) -> None:
    files = sources(role)
    assert len(files) > 1, f"{role}/ has no sources"
    forbidden = set(ROLES) - {role}
    offenders = {str(p.relative_to(ROOT)): imported_roots(p) & forbidden for p in files}
    assert {path: roots for path, roots in offenders.items() if roots} == {}


def test_the_shared_package_imports_no_role() -> None:
    files = sources("efedllm")
    assert len(files) > 10
    offenders = {str(p.relative_to(ROOT)): imported_roots(p) & {*ROLES, "efedllm_bench"} for p in files}
    assert {path: roots for path, roots in offenders.items() if roots} == {}


def test_torch_free_packages_name_no_heavy_import() -> None:
    files = [p for package in TORCH_FREE for p in sources(package)] + [ROOT / name for name in TORCH_FREE_FILES]
    assert all(p.exists() for p in files)
    offenders = {str(p.relative_to(ROOT)): imported_roots(p) & set(HEAVY) for p in files}
    assert {path: roots for path, roots in offenders.items() if roots} == {}


def test_every_client_module_imports_without_torch() -> None:
    """A finder that refuses the heavy packages stands in for a machine that lacks them."""
    modules = [
        ".".join(p.relative_to(ROOT / "client").with_suffix("").parts).removesuffix(".__init__")
        for p in sources("efedllm_client")
        if p.name != "__main__.py"
    ]
    program = f"""
import importlib, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
        return None

sys.meta_path.insert(0, Refuse())
for module in {modules!r}:
    importlib.import_module(module)
loaded = [name for name in {HEAVY!r} if name in sys.modules]
assert not loaded, loaded
print(len({modules!r}))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(modules)
    assert len(modules) > 3
