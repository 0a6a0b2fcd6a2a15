"""Planting from the command line, and routes that lead through one node."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from efedllm.errors import ConfigError
from efedllm_client.cli.canary import app
from efedllm_client.jobs.canary import check_prompts, check_wallet, route_through
from efedllm_client.routes.choose import STANDING_EXCLUDED, Candidate


def candidate(name: int, lo: int, hi: int, price: int = 10, **changes: object) -> Candidate:
    address = "0x" + f"{name:040x}"
    values = {"trust_ppm": 900_000, "standing": 2, "latency_ms": 1.0, **changes}
    return Candidate(address, address, "http://127.0.0.1:1", lo, hi, price, **values)  # type: ignore[arg-type]


def address_of(name: int) -> str:
    return "0x" + f"{name:040x}"


# The dear one is on no cheapest route.
NODES = [candidate(1, 0, 4), candidate(2, 4, 8), candidate(3, 4, 8, 900), candidate(4, 0, 6), candidate(5, 6, 8)]


@given(st.permutations(NODES), st.sampled_from(NODES))
def test_every_route_leads_through_the_node(candidates: list[Candidate], wanted: Candidate) -> None:
    route = route_through(candidates, 8, wanted.address)
    assert wanted in route.hops
    assert [hop.lo for hop in route.hops] == [0, *(hop.hi for hop in route.hops[:-1])]
    assert route.hops[-1].hi == 8


def test_a_session_that_is_open_is_used_again() -> None:
    twins = [*NODES, candidate(6, 0, 4, 11)]
    known = [(address_of(6), address_of(2))]
    assert route_through(twins, 8, address_of(2)).addresses == (address_of(1), address_of(2))
    assert route_through(twins, 8, address_of(2), known).addresses == known[0]
    assert route_through(twins, 8, address_of(3), known).addresses == (address_of(1), address_of(3))


@pytest.mark.parametrize(
    ("candidates", "code"),
    [
        (NODES[:2], "unknown-node"),
        ([candidate(3, 4, 8)], "node-not-on-route"),
        ([NODES[0], candidate(3, 4, 8, standing=STANDING_EXCLUDED)], "node-excluded"),
        ([NODES[0], candidate(3, 4, 8, status=2)], "node-excluded"),
        ([NODES[0], candidate(3, 4, 8, latency_ms=None)], "node-unreachable"),
    ],
)
def test_a_node_without_a_route_is_an_error(candidates: list[Candidate], code: str) -> None:
    with pytest.raises(ConfigError) as caught:
        route_through(candidates, 8, address_of(3))
    assert caught.value.code == code


def test_a_nodes_own_account_does_not_plant() -> None:
    check_wallet(address_of(9), NODES)
    with pytest.raises(ConfigError) as caught:
        check_wallet(address_of(2), NODES)
    assert caught.value.code == "canary-visible"


def test_prompts_are_not_repeated() -> None:
    assert check_prompts(["a", " ", "b", "a"], None) == ["a", "b"]
    assert check_prompts(["a", "b", "a", "c"], 3) == ["a", "b", "c"]
    for prompts, count, code in (
        (["a", "a"], 2, "too-few-prompts"),
        ([" "], None, "empty-prompt"),
        ([], 1, "empty-prompt"),
    ):
        with pytest.raises(ConfigError) as caught:
            check_prompts(prompts, count)
        assert caught.value.code == code


def test_the_command_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "prompts.txt"
    file.write_text("one\n\ntwo\n")
    for words, code in (
        (("--prompts", str(file), "--count", "3"), "too-few-prompts"),
        (("--prompts", str(tmp_path)), "bad-option"),
        (("--prompts", str(file)), "no-network"),
    ):
        done = CliRunner().invoke(app, ["plant", "--node", address_of(1), "--home", str(tmp_path), *words])
        assert isinstance(done.exception, ConfigError), done.output
        assert done.exception.code == code
