"""The model of the trust rule against the compiled contracts, in an EVM in this process."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.trust import committee, rule
from bench.trust.evm import COMMIT, REVEAL, Network, address_of
from bench.trust.history import Comparison
from deploy.profile import Profile
from efedllm.errors import ChainError, ProtocolError
from verifier.sampling import Verdict


def profile(name: str, **changes: int) -> Profile:
    loaded = Profile.load(name)
    return loaded.model_copy(update={"committee": loaded.committee.model_copy(update=changes)})


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("local", {}),
        ("testnet", {"exclusion_epochs": 6}),
        ("production", {"theta": 500_000, "reentry": 550_000, "prior_mass": 1_000_000, "exclusion_epochs": 4}),
    ],
)
def test_every_epoch_of_random_histories_is_equal(name: str, changes: dict[str, int]) -> None:
    """States, scores, standings, audit rates, stakes, jails, points: equal every epoch, over all kinds of history."""
    seen = Comparison(profile(name, **changes), nodes=5, verifiers=6, seed=f"{name} {changes}".encode()).run(60)
    assert seen.epochs == 60
    assert seen.values_compared > 4_000
    covered = (seen.verdicts, seen.no_quorum, seen.gaps, seen.excluded, seen.reentered, seen.probation)
    assert min(covered) > 0, seen
    assert min(seen.severe, seen.gray, seen.repeat_slashes, seen.deviated, seen.missed) > 0, seen


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.binary(min_size=4, max_size=8),
    theta=st.integers(0, 900_000),
    prior=st.integers(100_000, 10**9),
    p_min=st.integers(1_000, 1_000_000),
    size=st.integers(1, 15),
)
def test_any_parameters_within_the_bounds_are_equal(seed: bytes, theta: int, prior: int, p_min: int, size: int) -> None:
    changes = {"theta": theta, "reentry": 900_000, "prior_mass": prior, "p_min": p_min, "p_max": 1_000_000}
    edited = profile("production", **changes, committee_size=size, exclusion_epochs=3)
    assert Comparison(edited, nodes=4, verifiers=5, seed=seed).run(10).epochs == 10


def test_a_model_with_another_constant_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rule, "FAIL_FACTOR", 49)
    with pytest.raises(ProtocolError) as caught:
        Comparison(profile("local"), nodes=6, verifiers=8, seed=b"local {}").run(60)
    assert caught.value.code == "model-differs"


def test_a_slash_rounded_the_other_way_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(committee, "ceil_div", lambda a, b: a // b)
    with pytest.raises(ProtocolError):
        Comparison(profile("testnet"), nodes=6, verifiers=8, seed=b"rounding").run(60)


def test_a_node_is_never_drawn_for_itself_and_a_late_commit_is_refused() -> None:
    edited = profile("local")
    net = Network(edited)
    verifiers = [address_of(f"v{i}") for i in range(4)]
    for who in verifiers:
        net.stake(who, edited.committee.seat_stake * 2)
        net.take_seat(who)
    net.register(verifiers[0])
    net.move_to(3, COMMIT)
    seed = net.fix_seed(2)
    members = net.drawn(2, verifiers[0])
    assert members == committee.draw(seed, verifiers[0], verifiers, edited.committee.committee_size)
    assert verifiers[0] not in members
    attestation = net.attestation(2, members[0], {verifiers[0]: Verdict(10, 0, False)})
    net.move_to(3, REVEAL)
    # Whoever waits to see what others reveal is too late to commit.
    with pytest.raises(ChainError):
        net.commit(members[0], attestation)


def test_a_reveal_that_was_not_committed_is_refused() -> None:
    edited = profile("local", committee_size=1)
    net = Network(edited)
    node, verifier = address_of("node"), address_of("verifier")
    for who in (node, verifier):
        net.stake(who, edited.committee.seat_stake)
    net.register(node)
    net.take_seat(verifier)
    net.move_to(3, COMMIT)
    net.fix_seed(2)
    attestation = net.attestation(2, verifier, {node: Verdict(10, 0, False)})
    net.commit(verifier, attestation)
    net.move_to(3, REVEAL)
    with pytest.raises(ChainError):
        net.reveal(verifier, replace(attestation, verdicts=(0,)))
    net.reveal(verifier, attestation)
