"""Every number of the attack list is played by a strategy, by a lie, or by a test of its own."""

from __future__ import annotations

import re

import pytest

from efedllm.checkout import project_root
from efedllm_bench.attacks.coverage import LISTED, coverage

# (number of the attack list, the part that the test judges, file below the project, name of the test)
TESTS: tuple[tuple[int, str, str, str], ...] = (
    (9, "the last hop alone", "tests/attacks/test_descent.py", "test_what_the_last_hop_can_do_inside_the_tolerance"),
    (9, "all hops together", "tests/attacks/test_descent.py", "test_all_hops_together_gain_more_and_pass"),
    (13, "waiting time", "tests/attacks/test_limits.py", "test_jobs_until_caught_follow_the_formula"),
    (
        14,
        "audited share of leaves believed safe",
        "tests/attacks/test_limits.py",
        "test_nothing_tells_an_audit_from_the_rest",
    ),
    (15, "two specs, two verifiers", "tests/attacks/test_specs.py", "test_a_node_that_shows_two_verifiers_two_jobs"),
    (
        15,
        "two commitments, real processes",
        "tests/node/test_equivocation.py",
        "test_two_commitments_are_found_proven_and_paid_and_the_honest_keep_all",
    ),
    (
        15,
        "records lost or set back",
        "tests/node/test_used_once.py",
        "test_records_lost_or_set_back_cost_the_sessions_and_no_stake",
    ),
    (
        15,
        "who signs once is never slashed",
        "tests/contracts/DisputeInvariants.t.sol",
        "invariant_whoSignsOnceIsNeverSlashed",
    ),
    (
        16,
        "the same leaf twice",
        "tests/attacks/test_real_nodes.py",
        "test_a_leaf_that_stands_twice_in_an_epoch_fails_once",
    ),
    (16, "jobs that nobody paid for", "tests/verifier/test_epochs.py", "test_a_job_nobody_pays_for_fails"),
    (
        16,
        "a batch for another epoch",
        "tests/contracts/CommitmentLog.t.sol",
        "test_RevertWhen_minedInAnotherEpochThanTheRootNames",
    ),
    (
        17,
        "in the game, with taps",
        "tests/trust/test_verifiers.py",
        "test_at_the_shipped_parameters_honest_verifiers_earn_and_every_deviant_loses",
    ),
    (
        17,
        "on a chain: PASS without computing",
        "tests/contracts/Judgement.t.sol",
        "test_lazyPass_isSlashedWhenTheOthersFail",
    ),
    (
        17,
        "a made-up digest",
        "tests/verifier/test_tap_epochs.py",
        "test_a_lazy_verifier_loses_points_and_stake_and_the_honest_ones_earn",
    ),
    (17, "a copied commitment", "tests/verifier/test_tap_epochs.py", "test_a_copied_commitment_cannot_be_opened"),
    (17, "any liar over epochs", "tests/contracts/Taps.t.sol", "testFuzz_honestEarnAndLiarsLose"),
    (17, "copied results", "tests/contracts/VerifierCommittee.t.sol", "test_results_cannotBeCopied"),
    (18, "capture rates", "tests/trust/test_verifiers.py", "test_capture_rates_follow_the_hypergeometric_formula"),
    (20, "a verdict against the others'", "tests/contracts/Judgement.t.sol", "test_deviation_isSlashed"),
    (20, "a lone accuser changes nothing", "tests/contracts/Judgement.t.sol", "test_oneLiarChangesNothing"),
    (
        21,
        "a node behind a door",
        "tests/attacks/test_real_nodes.py",
        "test_what_a_node_does_not_show_fails_without_slashing",
    ),
    (21, "no reveal", "tests/contracts/Judgement.t.sol", "test_committedNotRevealed_isSlashedWithoutAList"),
    (22, "simulated", "tests/trust/test_simulate.py", "test_no_strategy_earns_more_than_honest_work"),
    (22, "whitewashing", "tests/trust/test_simulate.py", "test_whitewashing_costs_a_stake_for_every_identity"),
    (23, "salts", "tests/attacks/test_limits.py", "test_nothing_tells_an_audit_from_the_rest"),
    (23, "the seed's block", "tests/contracts/SeatRegistry.t.sol", "test_seed_isFixedFromTheBlockTwoAfterArming"),
    (24, "a fixed list", "tests/attacks/test_fleet.py", "test_strained_inputs_accuse_nobody"),
    (24, "a search", "tests/attacks/test_strain.py", "test_a_search_for_strained_inputs_accuses_nobody"),
    (
        24,
        "rows by descent, judged",
        "tests/attacks/test_strain.py",
        "test_a_node_that_was_sent_rows_made_to_strain_it_is_not_accused",
    ),
    (
        24,
        "exact kernels",
        "tests/attacks/test_strain.py",
        "test_strained_inputs_give_the_same_bits_by_two_exact_kernels",
    ),
    (
        27,
        "spread, and bits",
        "tests/attacks/test_limits.py",
        "test_a_model_made_to_be_accused_spreads_wide_and_keeps_its_exact_bits",
    ),
    (28, "vouchers", "tests/contracts/EscrowSettle.t.sol", "test_voucher_noReplay_onAnotherChainOrContract"),
    (29, "challenging oneself", "tests/contracts/StakeVault.t.sol", "test_dispute_selfDealingDoesNotPay"),
    (
        30,
        "no leaf of a job that broke off",
        "tests/attacks/test_broken_off.py",
        "test_a_lie_that_breaks_off_leaves_nothing_to_audit_and_keeps_its_pay",
    ),
    (
        30,
        "an exact model's tokens computed again",
        "tests/network/test_generate.py",
        "test_an_invented_token_of_a_route_that_breaks_off_is_noticed_on_the_next",
    ),
    (31, "many machines", "tests/attacks/test_fleet.py", "test_an_honest_fleet_is_not_accused"),
)


def test_every_number_of_the_list_is_played_or_tested() -> None:
    tested = {number for number, *_ in TESTS}
    for entry in coverage():
        assert entry["strategies"] or entry["messages"] or entry["number"] in tested, entry
    # 19 is not assigned.
    assert [entry["number"] for entry in coverage()] == list(LISTED) == [n for n in range(1, 32) if n != 19]
    assert tested <= set(LISTED)


@pytest.mark.parametrize(("file", "name"), [(file, name) for _, _, file, name in TESTS])
def test_the_test_exists(file: str, name: str) -> None:
    assert re.search(rf"(def|function) {name}\(", (project_root() / file).read_text()), f"{file} has no {name}."
