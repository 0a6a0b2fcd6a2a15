"""The attestation game and captured committees; what a run writes and shows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from efedllm.checkout import project_root
from efedllm_bench.trust import capture, games
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


def test_without_failures_or_taps_the_lazy_earn_more_than_the_honest() -> None:
    """The dilemma itself: a verdict alone cannot tell who computed."""
    out = payoffs("local", taps=False)
    assert out[d.LAZY_PASS].per_audit > out[d.HONEST].per_audit
    assert out[d.LAZY_PASS].slashed == 0


@pytest.mark.parametrize("jobs", [24, 100])
@pytest.mark.parametrize("name", games.PROFILES)
def test_at_the_shipped_parameters_honest_verifiers_earn_and_every_deviant_loses(name: str, jobs: int) -> None:
    """The contract's rules alone: taps, no node that cheats."""
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
