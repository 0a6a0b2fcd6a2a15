"""The model of the trust rule against the compiled contracts, in an EVM in this process."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from efedllm.errors import ChainError, ProtocolError
from efedllm_bench.trust import committee, games, rule
from efedllm_bench.trust import dilemma as d
from efedllm_bench.trust.committee import Said
from efedllm_bench.trust.evm import COMMIT, REVEAL, TALLY, Network, address_of
from efedllm_bench.trust.history import LAYERS, Comparison
from efedllm_bench.trust.simulate import Economy
from efedllm_deploy.profile import Profile
from efedllm_verifier.lot import Verdict


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
    assert min(seen.tap_agreed, seen.tap_differs) > 0, seen


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
    monkeypatch.setattr(committee, "quorum", lambda members: -(-2 * members // 3))
    monkeypatch.setattr(committee, "ceil_div", lambda a, b: a // b)
    with pytest.raises(ProtocolError, match="stake of"):
        Comparison(profile("testnet"), nodes=6, verifiers=8, seed=b"rounding").run(60)


def test_a_tap_rule_that_counts_failures_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    agreed = committee.agreed
    forgiving = lambda said, drawn: agreed([replace(s, verdict=Verdict(1, 0, False)) for s in said], drawn)  # noqa: E731
    monkeypatch.setattr(committee, "agreed", forgiving)
    with pytest.raises(ProtocolError) as caught:
        Comparison(profile("local"), nodes=6, verifiers=8, seed=b"taps").run(60)
    assert caught.value.code == "model-differs"


@pytest.mark.parametrize("failing", [False, True])
def test_the_contract_judges_every_strategy_of_the_game_as_the_game_does(failing: bool) -> None:
    """Each strategy's reports in the compiled contracts: the same outcomes, points and slashes as `settle`."""
    edited = profile("testnet", committee_size=15)
    names = [d.HONEST] * 10 + [d.LAZY_PASS, d.COPY, d.ABSENT, d.TAP_GUESS, d.FALSE_ACCUSER]
    names = names if failing else [*names, d.LAZY_FAIL][1:]
    game = games.game(edited, Economy())
    net, rng = Network(edited), np.random.default_rng(1)
    verifiers, nodes = ([address_of(f"{kind} {i}") for i in range(n)] for kind, n in (("v", len(names)), ("n", 2)))
    for who in (*verifiers, *nodes):
        net.stake(who, edited.committee.seat_stake)
    for node in nodes:
        net.register(node, LAYERS)
    for verifier in verifiers:
        net.take_seat(verifier)
    net.move_to(3, COMMIT)
    net.fix_seed(2)
    drawn = [[verifiers.index(member) for member in net.drawn(2, node)] for node in nodes]
    truth = Verdict(0, 20, True) if failing else Verdict(20, 0, False)
    said: list[dict[int, Said]] = [{} for _ in nodes]
    for i, members in enumerate(drawn):
        for m in members:
            item = d.report(game, names[m], m, d.AuditedNode(2, truth), i, rng)
            if item is not None:
                said[i][m] = item
    silent = {names.index(d.COPY)}
    attestations = {
        m: net.attestation(2, verifiers[m], {nodes[i]: reports[m] for i, reports in enumerate(said) if m in reports})
        for m in {m for reports in said for m in reports} | silent
    }
    for m, attestation in attestations.items():
        net.commit(verifiers[m], attestation)
    net.move_to(3, REVEAL)
    for m in attestations.keys() - silent:
        net.reveal(verifiers[m], attestations[m])
    before = [net.stake_of(node) for node in nodes]
    net.move_to(3, TALLY)
    net.finalize(2, nodes)
    assert [net.stake_of(node) != old for node, old in zip(nodes, before, strict=True)] == 2 * [failing]
    judgements = d.settle(game.rule, drawn, said, len(names), silent)
    for m, judgement in enumerate(judgements):
        assert judgement is not None
        listed = attestations[m].nodes if m in attestations else nodes
        assert net.judge(2, verifiers[m], listed) == judgement.outcome, names[m]
        assert net.points(2, verifiers[m]) == judgement.points, names[m]
        burned = edited.committee.seat_stake * judgement.slash_bps // 10_000
        assert net.stake_of(verifiers[m]) == (edited.committee.seat_stake - burned, 0), names[m]
    outcomes = {name: judgement.outcome for name, judgement in zip(names, judgements, strict=True) if judgement}
    lazy = committee.DEVIATED if failing else committee.TAP_DIFFERS
    assert (outcomes[d.HONEST], outcomes[d.LAZY_PASS], outcomes[d.TAP_GUESS]) == (committee.OK, lazy, lazy)
    assert outcomes[d.COPY] == outcomes[d.ABSENT] == committee.NO_REVEAL


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
    attestation = net.attestation(2, members[0], {verifiers[0]: Said(Verdict(10, 0, False), 5)})
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
    attestation = net.attestation(2, verifier, {node: Said(Verdict(10, 0, False), 5)})
    net.commit(verifier, attestation)
    net.move_to(3, REVEAL)
    with pytest.raises(ChainError):
        net.reveal(verifier, replace(attestation, verdicts=(0,)))
    with pytest.raises(ChainError):
        net.reveal(verifier, replace(attestation, taps=(bytes(31) + b"\x06",)))
    net.reveal(verifier, attestation)
