"""Trying newcomers: the counter's share, whom it may pick, and what a try may cost."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efedllm.errors import ConfigError
from efedllm_client.routes.choose import Candidate, CostWeights, choose_route
from efedllm_client.routes.newcomers import (
    PRICE_LIMIT_PERCENT,
    TRUST_GAP,
    Lot,
    check_share,
    draw_lot,
    explored_route,
    newcomers,
    tries_newcomer,
)
from tests.client.test_routing import LAYERS, address, candidate, networks

FIRST = Lot(0, 0)


def test_a_lot_is_drawn_from_the_client_and_its_jobs_alone() -> None:
    # The first 16 bytes of the hash of "EFL.explore.1", the address and the number, in big endian.
    assert draw_lot(address(6), 258) == Lot(16415624745955461175, 15043309629604045326)
    assert draw_lot(address(6), 258) == draw_lot(address(6), 258)
    assert len({draw_lot(address(client), jobs) for client in range(20) for jobs in range(20)}) == 400


@pytest.mark.parametrize("share", [0.0, 0.01, 0.05, 0.5, 1.0])
def test_the_counter_gives_the_share(share: float) -> None:
    jobs = 5_000
    tried = sum(tries_newcomer(draw_lot(address(1), job), share) for job in range(jobs))
    assert abs(tried - share * jobs) <= 4 * (share * (1 - share) * jobs) ** 0.5


def test_a_share_is_one_of_all_jobs() -> None:
    assert (check_share(0.0), check_share(1.0)) == (0.0, 1.0)
    for bad in (-0.01, 1.01, float("nan")):
        with pytest.raises(ConfigError) as caught:
            check_share(bad)
        assert caught.value.code == "bad-option"


@given(networks(), st.sets(st.integers(0, 9), max_size=3), st.integers(0, 2**64 - 1), st.none() | st.integers(0, 9000))
@settings(max_examples=400, deadline=None)
def test_a_try_is_a_bearable_cover_through_a_newcomer_that_works(
    nodes: list[Candidate], avoided: set[int], pick: int, max_price: int | None
) -> None:
    avoid = {address(i) for i in avoided}
    try:
        best = choose_route(nodes, LAYERS, avoid)
    except ConfigError:
        return
    route = explored_route(nodes, LAYERS, best, Lot(0, pick), avoid, max_price)
    if route is None:
        return
    assert [n.lo for n in route.hops] == [0, *[n.hi for n in route.hops[:-1]]]
    assert route.hops[-1].hi == LAYERS
    assert all(n.usable and n.address not in avoid for n in route.hops)
    assert route.newcomer in route.addresses
    assert route.newcomer not in best.addresses
    assert route.newcomer in {n.address for n in newcomers(nodes, LAYERS, avoid)}
    assert route.price * 100 <= best.price * PRICE_LIMIT_PERCENT
    assert max_price is None or route.price <= max_price


def test_newcomers_have_much_less_trust_than_others_of_their_layers() -> None:
    trusted = candidate(0, 0, 3, trust_ppm=900_000)
    fresh = candidate(1, 2, LAYERS, trust_ppm=900_000 - TRUST_GAP)
    close = candidate(2, 0, 3, trust_ppm=900_001 - TRUST_GAP)
    elsewhere = candidate(3, 3, LAYERS, trust_ppm=500_001)
    nodes = [fresh, close, elsewhere, trusted]
    assert newcomers(nodes, LAYERS) == [fresh]
    assert newcomers(nodes, LAYERS, avoid=[trusted.address]) == []
    for unusable in ({"standing": 0}, {"status": 2}, {"latency_ms": None}):
        assert newcomers([replace(fresh, **unusable), trusted], LAYERS) == []
    # Where everybody is new nobody is.
    assert newcomers([replace(node, trust_ppm=0) for node in nodes], LAYERS) == []


def test_every_bearable_newcomer_has_its_turn_and_no_other() -> None:
    trusted = [candidate(0, 0, 3, trust_ppm=955_000), candidate(1, 3, LAYERS, trust_ppm=955_000)]
    probation = candidate(2, 0, 3, trust_ppm=0, standing=1)
    active = candidate(3, 3, LAYERS, trust_ppm=400_000)
    dear = candidate(4, 0, 3, trust_ppm=0, price=151)
    far = candidate(5, 0, 3, trust_ppm=0, latency_ms=60.1)
    alone = candidate(6, 1, 2, trust_ppm=0)  # nobody serves layer 0 alone
    nodes = [*trusted, probation, active, dear, far, alone]
    best = choose_route(nodes, LAYERS)
    assert best.addresses == (trusted[0].address, trusted[1].address)
    tried = [explored_route(nodes, LAYERS, best, Lot(0, pick)) for pick in range(6)]
    routes = [(trusted[0].address, active.address), (probation.address, trusted[1].address)]
    assert {route.addresses for route in tried if route} == set(routes)
    assert [route.newcomer for route in tried if route] == [probation.address, active.address] * 3
    # Each limit, to the last unit.
    inside = [*trusted, replace(dear, price=150)]
    assert explored_route(inside, LAYERS, best, FIRST) is not None
    assert explored_route(inside, LAYERS, best, FIRST, max_price=249) is None
    assert explored_route(inside, LAYERS, best, FIRST, max_price=250) is not None
    assert explored_route([*trusted, dear], LAYERS, best, FIRST) is None
    assert explored_route([*trusted, far], LAYERS, best, FIRST) is None
    assert explored_route([*trusted, replace(far, latency_ms=60.0)], LAYERS, best, FIRST) is not None
    assert explored_route([*trusted, far], LAYERS, best, FIRST, weights=CostWeights(distrust=60.0)) is not None
