"""Imports between the rooms of bench lead one way."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

from efedllm.checkout import project_root

PACKAGE = "efedllm_bench"
ROOT = project_root() / "bench" / PACKAGE


def imported(path: Path) -> set[str]:
    """Rooms that a file imports from, anywhere in it."""
    modules = {
        node.module
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module is not None
    }
    return {module.split(".")[1] for module in modules if module.startswith(f"{PACKAGE}.")}


def test_no_two_rooms_import_each_other() -> None:
    rooms = {room.name: room for room in ROOT.iterdir() if (room / "__init__.py").exists()}
    graph = {
        name: set().union(*map(imported, room.rglob("*.py"))) & (set(rooms) - {name}) for name, room in rooms.items()
    }
    # CycleError names the rooms of a circle.
    order = list(TopologicalSorter(graph).static_order())
    assert set(order) == set(rooms)
    assert graph["calibration"] == {"cheats", "fleet"}
    assert "calibration" in graph["attacks"]
