"""Routing: exact covers, exclusions, optimality against brute force, and what the errors say."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efedllm.errors import ConfigError
from efedllm_client.routes.choose import (
    STICKINESS,
    Candidate,
    CostWeights,
    cheapest_per_layer,
    check_price,
    choose_known_route,
    choose_route,
    hop_cost,
    named_route,
    resolve_names,
    uncovered,
)

LAYERS = 6


def address(index: int) -> str:
    return f"0x{index + 1:040x}"


def candidate(index: int, lo: int, hi: int, **changes: object) -> Candidate:
    base = {
        "address": address(index),
        "signer": address(1000 + index),
        "endpoint": f"http://node-{index}",
        "lo": lo,
        "hi": hi,
        "price": 100,
        "trust_ppm": 500_000,
        "standing": 2,
        "latency_ms": 10.0,
    }
    return Candidate(**{**base, **changes})  # type: ignore[arg-type]


@st.composite
def networks(draw: st.DrawFn) -> list[Candidate]:
    nodes = []
    for index in range(draw(st.integers(0, 9))):
        lo = draw(st.integers(0, LAYERS - 1))
        nodes.append(
            candidate(
                index,
                lo,
                draw(st.integers(lo + 1, LAYERS)),
                price=draw(st.integers(0, 5000)),
                trust_ppm=draw(st.integers(0, 1_000_000)),
                standing=draw(st.sampled_from([0, 1, 2, 2, 2])),
                status=draw(st.sampled_from([1, 1, 1, 2, 3])),
                latency_ms=draw(st.one_of(st.none(), st.floats(0.1, 500), st.floats(0.1, 500))),
                queue=draw(st.integers(0, 8)),
            )
        )
    return nodes


def covers(nodes: list[Candidate], at: int = 0) -> Iterator[list[Candidate]]:
    """Every contiguous cover, by plain enumeration."""
    if at == LAYERS:
        yield []
        return
    for node in nodes:
        if node.lo == at:
            for rest in covers(nodes, node.hi):
                yield [node, *rest]


@given(networks(), st.sets(st.integers(0, 9), max_size=3))
@settings(max_examples=300, deadline=None)
def test_route_is_an_exact_optimal_cover_without_excluded_nodes(nodes: list[Candidate], avoided: set[int]) -> None:
    avoid = {address(i).upper().replace("0X", "0x") for i in avoided}
    usable = [
        n
        for i, n in enumerate(nodes)
        if i not in avoided and n.latency_ms is not None and n.standing != 0 and n.status == 1
    ]
    reference, weights = cheapest_per_layer(usable), CostWeights()
    best = min((sum(hop_cost(n, reference, weights) for n in cover) for cover in covers(usable)), default=None)
    if best is None:
        with pytest.raises(ConfigError) as caught:
            choose_route(nodes, LAYERS, avoid)
        assert caught.value.code == "layers-not-covered"
        return
    route = choose_route(nodes, LAYERS, avoid)
    assert [n.lo for n in route.hops] == [0, *[n.hi for n in route.hops[:-1]]]
    assert route.hops[-1].hi == LAYERS
    assert all(n in usable for n in route.hops)
    assert route.cost == pytest.approx(best)
    assert route.price == sum(n.price for n in route.hops)


@given(networks(), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_route_does_not_depend_on_the_order_of_candidates(nodes: list[Candidate], random: object) -> None:
    shuffled = list(nodes)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    try:
        expected = choose_route(nodes, LAYERS)
    except ConfigError:
        with pytest.raises(ConfigError):
            choose_route(shuffled, LAYERS)
    else:
        assert choose_route(shuffled, LAYERS).addresses == expected.addresses


def test_each_cost_term_decides_when_the_others_are_equal() -> None:
    plain = candidate(0, 0, LAYERS)
    for worse in ({"latency_ms": 11.0}, {"price": 200}, {"trust_ppm": 400_000}, {"queue": 1}):
        assert choose_route([candidate(1, 0, LAYERS, **worse), plain], LAYERS).addresses == (plain.address,)
    halves = [candidate(2, 0, 3, price=50, latency_ms=5.0), candidate(3, 3, LAYERS, price=50, latency_ms=5.0)]
    assert choose_route([*halves, plain], LAYERS).addresses == (plain.address,)


def test_trusted_node_wins_over_a_slightly_faster_distrusted_one() -> None:
    fast = candidate(0, 0, LAYERS, latency_ms=5.0, trust_ppm=100_000)
    trusted = candidate(1, 0, LAYERS, latency_ms=15.0, trust_ppm=900_000)
    assert choose_route([fast, trusted], LAYERS).addresses == (trusted.address,)


def test_error_names_the_layers_nobody_serves() -> None:
    nodes = [candidate(0, 0, 2), candidate(1, 3, 5), candidate(2, 2, 3, latency_ms=None)]
    with pytest.raises(ConfigError) as caught:
        choose_route(nodes, LAYERS)
    assert caught.value.message == (
        "No usable node serves layers 2, 5 of 6 (1 registered nodes are unreachable, paused or excluded)."
    )
    assert "efedllm network" in caught.value.hint


def test_error_when_ranges_overlap_but_never_meet() -> None:
    with pytest.raises(ConfigError, match="no chain of nodes meets end to end"):
        choose_route([candidate(0, 0, 4), candidate(1, 3, LAYERS)], LAYERS)


def test_a_route_above_the_wanted_price_is_refused() -> None:
    route = choose_route([candidate(0, 0, LAYERS, price=2 * 10**9)], LAYERS)
    assert check_price(route, None) is check_price(route, 2 * 10**9) is route
    with pytest.raises(ConfigError, match=r"costs 2 EFED per 1000 tokens, more than 1\.5 EFED"):
        check_price(route, 15 * 10**8)


def test_uncovered_spans() -> None:
    assert uncovered([], 3) == [(0, 3)]
    assert uncovered([candidate(0, 1, 2)], 3) == [(0, 1), (2, 3)]
    assert uncovered([candidate(0, 0, 3)], 3) == []


def test_named_route_takes_unique_prefixes_in_layer_order() -> None:
    first = candidate(0, 0, 4, address="0xAAAA" + "0" * 36)
    second = candidate(1, 4, LAYERS, address="0xBBBB" + "0" * 36)
    assert named_route([second, first], LAYERS, ["0xaaaa", "0xBBBB0"]).addresses == (first.address, second.address)
    assert resolve_names([first, second], ["0xbbbb"]) == (second.address,)


@pytest.mark.parametrize(
    ("names", "code"),
    [
        (["0xbb", "0xaa"], "route-gap"),
        (["0xaa"], "route-gap"),
        (["0xaa", "0xcc"], "node-unreachable"),
        (["0xaa", "0xdd"], "node-excluded"),
        (["0xaa", "0xee"], "unknown-node"),
        (["0x", "0xbb"], "unknown-node"),
    ],
)
def test_named_route_errors(names: list[str], code: str) -> None:
    nodes = [
        candidate(0, 0, 4, address="0xaa" + "0" * 38),
        candidate(1, 4, LAYERS, address="0xbb" + "0" * 38),
        candidate(2, 4, LAYERS, address="0xcc" + "0" * 38, latency_ms=None, problem="connection refused"),
        candidate(3, 4, LAYERS, address="0xdd" + "0" * 38, standing=0),
    ]
    with pytest.raises(ConfigError) as caught:
        named_route(nodes, LAYERS, names)
    assert caught.value.code == code


def test_latencies_that_differ_by_noise_count_the_same() -> None:
    dear_and_fast = candidate(0, 0, LAYERS, latency_ms=0.7, price=101)
    cheap = candidate(1, 0, LAYERS, latency_ms=4.9)
    assert choose_route([dear_and_fast, cheap], LAYERS).addresses == (cheap.address,)


def test_a_route_with_an_open_session_is_kept_while_it_costs_little_more() -> None:
    best = candidate(0, 0, LAYERS, latency_ms=60.0)
    close = candidate(1, 0, LAYERS, latency_ms=70.0)
    far = candidate(2, 0, LAYERS, latency_ms=200.0)
    nodes = [best, close, far, candidate(3, 0, 3, latency_ms=None), candidate(4, 3, LAYERS)]
    assert choose_known_route(nodes, LAYERS, []).addresses == (best.address,)
    assert choose_known_route(nodes, LAYERS, [(far.address,), (close.address,)]).addresses == (close.address,)
    for useless in ((far.address,), (address(3), address(4)), (address(4),), (address(9),)):
        assert choose_known_route(nodes, LAYERS, [useless]).addresses == (best.address,)
    assert choose_known_route(nodes, LAYERS, [(close.address,)], avoid=[close.address]).addresses == (best.address,)


@given(networks(), st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=4))
@settings(max_examples=200, deadline=None)
def test_whatever_is_known_the_route_is_an_exact_cover_and_costs_little_more(
    nodes: list[Candidate], known: list[list[int]]
) -> None:
    try:
        best = choose_route(nodes, LAYERS)
    except ConfigError:
        return
    route = choose_known_route(nodes, LAYERS, [[address(i) for i in hops] for hops in known])
    assert [n.lo for n in route.hops] == [0, *[n.hi for n in route.hops[:-1]]]
    assert route.hops[-1].hi == LAYERS
    assert all(n.usable for n in route.hops)
    assert best.cost <= route.cost * 1.000001
    assert route.cost <= best.cost * STICKINESS
