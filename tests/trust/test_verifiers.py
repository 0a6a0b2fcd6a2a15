"""The attestation game and captured committees; what a run writes and shows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from efedllm.checkout import project_root
from efedllm_bench.trust import canaries, capture, games
from efedllm_bench.trust import dilemma as d
from efedllm_bench.trust.plots import draw_all
from efedllm_bench.trust.report import save, tables
from efedllm_bench.trust.run import FORMER
from efedllm_bench.trust.simulate import Economy
from efedllm_deploy.profile import Profile

ECONOMY = Economy()
RESULTS = project_root() / "bench" / "results" / "trust.json"


def payoffs(name: str, epochs: int = 6, **changes: object) -> dict[str, d.Payoff]:
    game = games.game(Profile.load(name), ECONOMY, **changes)
    deviants = d.STRATEGIES[1:]
    return d.play(game, [d.HONEST] * (games.SEATS - len(deviants)) + list(deviants), epochs)


def test_without_failures_taps_or_canaries_the_lazy_earn_more_than_the_honest() -> None:
    """The dilemma itself: a verdict alone cannot tell who computed."""
    out = payoffs("local", taps=False)
    assert out[d.LAZY_PASS].per_audit > out[d.HONEST].per_audit
    assert out[d.LAZY_PASS].slashed == 0


@pytest.mark.parametrize("jobs", [24, 100])
@pytest.mark.parametrize("name", games.PROFILES)
def test_at_the_shipped_parameters_honest_verifiers_earn_and_every_deviant_loses(name: str, jobs: int) -> None:
    """The contract's rules alone: taps, no canaries, no node that cheats."""
    out = payoffs(name, jobs=jobs)
    assert out[d.HONEST].per_audit > 0
    assert out[d.HONEST].slashed == 0
    for strategy in d.STRATEGIES[1:]:
        assert out[strategy].per_audit < 0, strategy
    # Nothing of it comes from others' forfeits.
    game = games.game(Profile.load(name), ECONOMY, jobs=jobs)
    assert d.play(game, [d.HONEST] * games.SEATS, 6)[d.HONEST].per_audit > 0
    assert game.phi_bps * game.verifiers_bps / 1e8 > d.needed_share(game, games.MARGIN)


def test_where_nodes_fail_honest_verifiers_are_still_paid_and_never_slashed() -> None:
    out = payoffs("production", failing=0.2)
    assert out[d.HONEST].per_audit > 0
    assert out[d.HONEST].slashed == 0
    assert out[d.LAZY_PASS].per_audit < -1


@pytest.mark.parametrize("taps", [True, False])
@pytest.mark.parametrize("name", games.PROFILES)
def test_with_canaries_every_deviant_loses_taps_or_not(name: str, taps: bool) -> None:
    out = payoffs(name, 40, taps=taps, canaries=0.05)
    assert out[d.HONEST].per_audit > 0
    assert out[d.HONEST].slashed == 0
    for strategy in d.STRATEGIES[1:]:
        assert out[strategy].per_audit < 0, strategy


@pytest.mark.parametrize("jobs", [24, 100, 400])
@pytest.mark.parametrize("name", games.PROFILES)
def test_at_the_recommended_share_one_lazy_verifier_loses_even_if_it_keeps_silent_when_caught(
    name: str, jobs: int
) -> None:
    """Shipped parameters, float models, nobody cheats."""
    game = games.game(Profile.load(name), ECONOMY, jobs=jobs, taps=False, canaries=games.CANARIES)
    for bps in (game.rule.deviation_bps, game.rule.no_reveal_bps):
        assert canaries.lazy_utility(game, games.SEATS, bps) < -game.audit_cost
        assert canaries.ruinous(game, games.SEATS, bps) < games.CANARIES / 1.5
    none = replace(game, canaries=0.0)
    assert canaries.lazy_utility(none, games.SEATS, 0) == pytest.approx(game.reward)


def test_at_the_recommended_share_the_game_has_the_lazy_and_the_copying_lose_and_the_honest_earn() -> None:
    """Production, a float model; four of each kind, so that some hundred epochs hold enough canaries."""
    game = games.game(Profile.load("production"), ECONOMY, taps=False, canaries=games.CANARIES)
    deviants = [kind for kind in (d.LAZY_PASS, d.SILENT, d.COPY) for _ in range(4)]
    out = d.play(game, [d.HONEST] * (games.SEATS - len(deviants)) + deviants, 300)
    assert out[d.HONEST].per_audit > 0
    assert out[d.HONEST].slashed == 0
    for kind in set(deviants):
        assert out[kind].per_audit < 0, kind


@pytest.mark.parametrize(("kind", "column"), [(d.LAZY_PASS, "deviation_bps"), (d.SILENT, "no_reveal_bps")])
def test_canaries_deter_from_the_share_that_the_formula_gives(kind: str, column: str) -> None:
    """With so small a stake that the share is a few per cent, a game of some hundred epochs shows both sides of it."""
    profile = Profile.load("production")
    bps = getattr(profile.committee, column)
    game = d.of(profile, 5_000.0 / bps, nodes=30, taps=False)
    share = canaries.deterring(game, 13, bps)
    assert 0.01 < share < 0.1
    for factor, lazy_wins in ((0.3, True), (3.0, False)):
        out = d.play(replace(game, canaries=factor * share), [d.HONEST] * 12 + [kind], 60)
        assert (out[kind].per_audit > out[d.HONEST].per_audit) == lazy_wins


@pytest.mark.parametrize(("kind", "column"), [(d.LAZY_PASS, "deviation_bps"), (d.SILENT, "no_reveal_bps")])
def test_the_formula_says_what_the_game_plays(kind: str, column: str) -> None:
    game = games.game(Profile.load("production"), ECONOMY, taps=False, canaries=0.05)
    formula = canaries.lazy_utility(game, 20, getattr(game.rule, column))
    played = d.play(game, [d.HONEST] * 19 + [kind], 80)[kind].per_audit
    assert played == pytest.approx(formula, rel=0.2)


def test_a_majority_that_does_not_compute_is_not_found_out_by_canaries_and_hurts_no_honest_verifier() -> None:
    game = games.game(Profile.load("production"), ECONOMY, taps=False, canaries=0.05)
    out = d.play(game, [d.HONEST] * 4 + [d.LAZY_PASS] * 52, 12)
    assert out[d.LAZY_PASS].per_audit > out[d.HONEST].per_audit
    assert out[d.HONEST].slashed == 0
    few = d.play(game, [d.HONEST] * 46 + [d.LAZY_PASS] * 10, 12)
    assert few[d.LAZY_PASS].per_audit < 0 < few[d.HONEST].per_audit


def test_planting_costs_the_fees_of_the_other_hops_and_little_gas() -> None:
    game = games.game(Profile.load("production"), ECONOMY, taps=False, canaries=games.CANARIES)
    alone, four = (canaries.planting(game, hops, ECONOMY.cost, 300) for hops in (1, 4))
    planted = game.jobs * game.canaries
    assert alone.fees == pytest.approx(planted * (0.03 + ECONOMY.cost))
    assert four.fees - alone.fees == pytest.approx(3 * planted)
    assert four.of_income < 0.01
    everything = canaries.planting(replace(game, canaries=1.0, jobs=1_000), 1, ECONOMY.cost, 300)
    audited = 1_000 * replace(game, jobs=1_000).audit_rate
    assert everything.openings == pytest.approx(1.0, abs=1e-6)
    assert everything.gas == pytest.approx(canaries.OPEN_GAS + (audited - 1) * canaries.OPEN_GAS_MORE, rel=1e-3)


def test_failures_of_nodes_deter_from_the_share_that_the_formula_gives() -> None:
    game = d.of(Profile.load("production"), 100.0, nodes=30, taps=False)
    share = d.deterring_failures(game)
    assert 0.02 < share < 0.1
    for factor, lazy_wins in ((0.1, True), (4.0, False)):
        out = d.play(replace(game, failing=factor * share), [d.HONEST] * 12 + [d.LAZY_PASS], 60)
        assert (out[d.LAZY_PASS].per_audit > out[d.HONEST].per_audit) == lazy_wins


def test_nobody_is_punished_for_taps_without_a_quorum_of_one_digest() -> None:
    game = games.game(Profile.load("production"), ECONOMY)
    out = d.play(game, [d.HONEST] * 8 + [d.LAZY_PASS] * 24, 4)
    assert out[d.HONEST].slashed == 0


def test_honest_verifiers_earn_what_the_reward_formula_says() -> None:
    game = games.game(Profile.load("local"), ECONOMY)
    out = d.play(game, [d.HONEST] * 10, 30)[d.HONEST]
    assert out.reward == pytest.approx(game.reward, rel=0.05)
    assert out.cost == pytest.approx(game.audit_cost)


def test_the_needed_share_is_what_makes_honest_work_pay() -> None:
    game = games.game(Profile.load("production"), ECONOMY)
    share = d.needed_share(game, margin=1.0)
    paid = replace(game, phi_bps=10_000, verifiers_bps=round(share * 10_000))
    assert paid.reward == pytest.approx(game.audit_cost, rel=0.02)


@pytest.mark.parametrize("name", sorted(FORMER))
def test_with_most_of_the_emission_for_nodes_honest_verifiers_would_lose(name: str) -> None:
    """The game can say no: the parameters that the results compare the shipped ones with."""
    game = games.game(games.edited_profile(name, FORMER[name]), ECONOMY)
    assert d.play(game, [d.HONEST] * games.SEATS, 6)[d.HONEST].per_audit < 0
    assert game.phi_bps * game.verifiers_bps / 1e8 < d.needed_share(game, 1.0)


def test_all_audits_of_the_production_network_cost_under_three_per_cent_of_its_compute() -> None:
    rows = games.break_even(ECONOMY, {}, 2, lambda _: None)
    loads = {(row["profile"], row["jobs"]): row["audit_load_of_compute"] for row in rows}
    assert loads["production", 100] < loads["production", 24] <= 0.03


@pytest.mark.parametrize("name", games.PROFILES)
def test_honest_work_pays_from_the_number_of_jobs_that_the_formula_gives(name: str) -> None:
    game = games.game(Profile.load(name), ECONOMY)
    least = d.least_jobs(game)
    assert least is not None
    assert least < 24
    for jobs, pays in ((least, True), (least - 1, False)):
        if jobs:
            assert (replace(game, jobs=jobs).reward >= game.audit_cost) == pays


def test_capture_rates_follow_the_hypergeometric_formula() -> None:
    rows = capture.measure(60, 1_500, (0.2, 0.33, 0.45), (5, 7))
    assert all(row.worst_z < 4 for row in rows)
    for row in rows:
        assert row.two_thirds_formula < row.majority_formula < 1
    by_share = [row.majority_formula for row in rows if row.size == 7]
    assert by_share == sorted(by_share)


def test_the_formula_at_its_ends() -> None:
    assert capture.tail(60, 0, 7, 1) == 0
    assert capture.tail(60, 60, 7, 7) == 1
    assert capture.tail(60, 20, 7, 0) == pytest.approx(1)


def test_committed_results_can_be_shown_and_drawn(tmp_path: Path) -> None:
    result = json.loads(RESULTS.read_text())
    assert json.loads(save(result, tmp_path).read_text()) == result
    shown = tables(result)
    assert all(table.row_count > 0 for table in shown)
    for name in draw_all(result, tmp_path):
        assert 1_000 < (tmp_path / name).stat().st_size < 80_000
