"""The import rules of the house: who may import whom, that a client needs no torch, and what a module may be."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from efedllm.checkout import project_root

ROOT = project_root()
ROLES = ("efedllm_node", "efedllm_verifier", "efedllm_client", "efedllm_deploy")
PRODUCTION = ("efedllm", *ROLES)
MOST_LINES = 420
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

# The rooms of a package, its folders and modules, and those that each may import. What is not listed imports no other.
ROOMS: dict[str, dict[str, set[str]]] = {
    "efedllm_node": {
        "__main__": {"cli"},
        "cli": {"app", "config", "epoch", "home", "options"},
        "app": {
            *("chain_clock", "compute", "config", "epoch", "facts", "home", "http", "jobs"),
            *("metrics", "payments", "storage"),
        },
        "http": {"compute", "jobs", "storage"},
        "jobs": {"chain_clock", "compute", "config", "facts", "metrics", "payments", "storage"},
        "epoch": {"chain_clock", "compute", "config", "metrics", "payments", "storage"},
        "payments": {"config", "facts", "metrics", "storage"},
        "options": {"config"},
    },
    "efedllm_client": {
        "__init__": {"api", "jobs"},
        "__main__": {"cli"},
        "cli": {"api", "config", "jobs", "payments", "routes", "text"},
        "api": {"config", "jobs", "payments", "routes", "text"},
        "jobs": {"config", "http", "payments", "routes", "text"},
        "payments": {"config"},
        "routes": {"config", "http"},
    },
}
# Of the shared package only the folders are listed: every one may import its single modules, such as errors and logs.
FLOORS: dict[str, set[str]] = {
    "chain": {"commitments", "wire"},
    "wire": {"commitments"},
    "compression": {"engine", "models"},
    "engine": {"commitments", "kernels", "models"},
    "models": {"commitments"},
    "sampling": {"commitments", "kernels"},
    "commitments": {"kernels"},
    "kernels": set(),
}


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
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(modules)
    assert len(modules) > 3


def trees(package: str) -> Iterator[tuple[Path, ast.Module]]:
    """Every module of a package with its syntax tree."""
    for path in sources(package):
        yield path, ast.parse(path.read_text(), filename=str(path))


def arrows(package: str) -> dict[str, set[str]]:
    """The other rooms of a package that each of its rooms imports, at any depth of the code."""
    found: dict[str, set[str]] = defaultdict(set)
    for path, tree in trees(package):
        room = path.relative_to(folder(package)).with_suffix("").parts[0]
        for item in ast.walk(tree):
            names: list[str] = []
            if isinstance(item, ast.Import):
                names = [alias.name for alias in item.names]
            elif isinstance(item, ast.ImportFrom) and item.module and item.level == 0:
                names = [item.module, *(f"{item.module}.{alias.name}" for alias in item.names)]
            for name in names:
                parts = name.split(".")
                if parts[0] == package and len(parts) > 1 and is_room(package, parts[1]) and parts[1] != room:
                    found[room].add(parts[1])
    return found


def is_room(package: str, name: str) -> bool:
    """`from efedllm import __version__` names something else than a module."""
    return (folder(package) / name).is_dir() or (folder(package) / f"{name}.py").is_file()


@pytest.mark.parametrize("package", PRODUCTION)
def test_rooms_import_each_other_in_no_circle(package: str) -> None:
    TopologicalSorter(arrows(package)).prepare()


@pytest.mark.parametrize("package", ROOMS)
def test_rooms_import_in_the_agreed_direction(package: str) -> None:
    allowed = ROOMS[package]
    TopologicalSorter(allowed).prepare()
    unlisted = {room: others - allowed.get(room, set()) for room, others in arrows(package).items()}
    assert {room: others for room, others in unlisted.items() if others} == {}


def test_floors_of_the_shared_package_import_downwards() -> None:
    rooms = {path.name for path in folder("efedllm").iterdir() if (path / "__init__.py").is_file()}
    assert rooms == set(FLOORS)
    TopologicalSorter(FLOORS).prepare()
    found = {room: others & rooms for room, others in arrows("efedllm").items() if room in rooms}
    assert {room: others - FLOORS[room] for room, others in found.items() if others - FLOORS[room]} == {}
    # What is no folder is used by all of them and uses none.
    single = {room: others & rooms for room, others in arrows("efedllm").items() if room not in rooms}
    assert {room: others for room, others in single.items() if others} == {}


@pytest.mark.parametrize("package", [*PRODUCTION, "efedllm_bench"])
def test_no_module_counts_parent_folders(package: str) -> None:
    """`efedllm.checkout.project_root()` finds the checkout, `importlib.resources` what a package brings."""
    offenders = []
    for path, tree in trees(package):
        for item in ast.walk(tree):
            if not isinstance(item, ast.Subscript | ast.Attribute):
                continue
            indexed = isinstance(item, ast.Subscript) and is_attribute(item.value, "parents")
            twice = is_attribute(item, "parent") and is_attribute(item.value, "parent")
            if indexed or twice:
                offenders.append(f"{path.relative_to(ROOT)}:{item.lineno}")
    assert offenders == []


def is_attribute(item: ast.expr, name: str) -> bool:
    return isinstance(item, ast.Attribute) and item.attr == name


def test_no_public_class_name_occurs_twice() -> None:
    """A noun has one meaning in the project."""
    places: dict[str, list[str]] = defaultdict(list)
    for package in PRODUCTION:
        for path, tree in trees(package):
            for item in tree.body:
                if isinstance(item, ast.ClassDef) and not item.name.startswith("_"):
                    places[item.name].append(str(path.relative_to(ROOT)))
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


@pytest.mark.parametrize("package", PRODUCTION)
def test_no_production_file_is_too_long_to_read(package: str) -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in sources(package)}
    lengths.pop("efedllm/chain/contracts.py", None)  # written by `make contracts`
    assert {path: lines for path, lines in lengths.items() if lines > MOST_LINES} == {}


@pytest.mark.parametrize("role", ROLES)
def test_no_role_imports_the_benchmarks(role: str) -> None:
    offenders = [str(path.relative_to(ROOT)) for path in sources(role) if "efedllm_bench" in imported_roots(path)]
    assert offenders == []


def test_the_benchmarks_know_no_tests() -> None:
    """Tests import the red team of efedllm_bench; an arrow back would make the two one thing."""
    offenders = []
    for path, tree in trees("efedllm_bench"):
        for item in ast.walk(tree):
            # A docstring may say where a rule is tested; a name of a test, tests/FILE::NAME, is a reference.
            if not isinstance(item, ast.Constant) or not isinstance(item.value, str):
                continue
            if "tests/" in item.value and "::" in item.value:
                offenders.append(f"{path.relative_to(ROOT)}:{item.lineno}")
        if "tests" in imported_roots(path):
            offenders.append(str(path.relative_to(ROOT)))
    assert offenders == []
