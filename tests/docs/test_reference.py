"""The committed reference pages are what the commands and the contracts say."""

from __future__ import annotations

from typing import Any

import pytest

from tools.docs import __main__ as pages
from tools.docs import commands, contracts

STALE = "Run `python -m tools.docs` and commit docs/reference."


@pytest.fixture(scope="module")
def interfaces() -> dict[str, Any]:
    return contracts.read()


def test_the_command_reference_is_current() -> None:
    assert (pages.REFERENCE / "commands.md").read_text(encoding="utf-8") == commands.render(), STALE


def test_the_contract_reference_is_current(interfaces: dict[str, Any]) -> None:
    assert (pages.REFERENCE / "contracts.md").read_text(encoding="utf-8") == contracts.render(interfaces), STALE


def test_every_parameter_of_an_event_or_error_is_described(interfaces: dict[str, Any]) -> None:
    bare = []
    for file in interfaces.values():
        for name, compiled in file["contracts"].items():
            for entry in compiled["abi"]:
                if entry["type"] not in ("event", "error"):
                    continue
                notice, described = contracts.documentation(compiled, entry)
                inherited_from_openzeppelin = name == "IEfedToken" and entry["type"] == "event"
                if not inherited_from_openzeppelin and not (
                    notice and {item["name"] for item in entry["inputs"]} <= set(described)
                ):
                    bare.append(f"{name}.{entry['name']}")
    assert bare == []
