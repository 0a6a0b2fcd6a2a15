"""The attack list, 1 to 31: which strategy plays each, or which test judges it elsewhere; what is absent says so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from efedllm_bench.attacks.cheats.catalog import ATTACKS
from efedllm_bench.attacks.lies.messages import MESSAGE_ATTACKS

LISTED: dict[int, str] = {
    1: "model_swap",
    2: "precision",
    3: "rank",
    4: "skip, repeat or exchange layers",
    5: "key/value cache",
    6: "fine-tuned weights",
    7: "prompt edited, dropped, injected",
    8: "noise on the output",
    9: "perturbations inside the tolerance, aimed by gradient ascent",
    10: "sampling",
    11: "copied roots",
    12: "replay",
    13: "cheating on some jobs only",
    14: "honest when audited",
    15: "equivocation, mismatched boundaries, bad envelopes",
    16: "omitted or late commitments, padded batches",
    17: "lazy, copying and guessing verifiers",
    18: "colluding verifiers",
    19: "canaries: verifiers that do not look, cheats that claim one",
    20: "false accuser",
    21: "withheld data, slow answers, no reveal",
    22: "sybils, whitewashing, on-off cheats, exit scams",
    23: "grinding the randomness",
    24: "inputs that strain honest backends, searched",
    25: "malformed bytes and trees",
    26: "drift at the verifier",
    27: "a model whose result depends on the order of sums",
    28: "replay across chains, malleable signatures",
    29: "slashing oneself",
    30: "lying in jobs that break off",
    31: "an honest fleet of different machines",
}


@dataclass(frozen=True)
class Pointer:
    """A part of the list that is judged by a test of its own. `test`: FILE::NAME below the project."""

    number: int
    what: str
    test: str


POINTERS: tuple[Pointer, ...] = (
    Pointer(9, "the last hop alone", "tests/attacks/test_descent.py::test_what_the_last_hop_can_do"),
    Pointer(9, "all hops together", "tests/attacks/test_descent.py::test_all_hops_together_gain_more_and_pass"),
    Pointer(13, "waiting time", "tests/attacks/test_limits.py::test_jobs_until_caught"),
    Pointer(14, "audited share of leaves believed safe", "tests/attacks/test_limits.py::test_nothing_tells_an_audit"),
    Pointer(
        15, "two specs, two verifiers", "tests/attacks/test_specs.py::test_a_node_that_shows_two_verifiers_two_jobs"
    ),
    Pointer(15, "two commitments, real processes", "tests/node/test_equivocation.py::test_two_commitments_are_found"),
    Pointer(15, "records lost or set back", "tests/node/test_used_once.py::test_records_lost_or_set_back"),
    Pointer(
        *(15, "who signs once is never slashed"),
        "tests/contracts/DisputeInvariants.t.sol::invariant_whoSignsOnceIsNeverSlashed",
    ),
    Pointer(16, "the same leaf twice", "tests/attacks/test_real_nodes.py::test_a_leaf_that_stands_twice"),
    Pointer(16, "jobs that nobody paid for", "tests/verifier/test_epochs.py::test_a_job_nobody_pays_for_fails"),
    Pointer(
        *(16, "a batch for another epoch"),
        "tests/contracts/CommitmentLog.t.sol::test_RevertWhen_minedInAnotherEpochThanTheRootNames",
    ),
    Pointer(
        17,
        "in the game, with taps",
        "tests/trust/test_verifiers.py::test_at_the_shipped_parameters_honest_verifiers_earn_and_every_deviant_loses",
    ),
    Pointer(17, "on a chain: PASS without computing", "tests/contracts/Judgement.t.sol::test_lazyPass_isSlashed"),
    Pointer(17, "a made-up digest", "tests/verifier/test_tap_epochs.py::test_a_lazy_verifier_loses_points_and_stake"),
    Pointer(17, "a copied commitment", "tests/verifier/test_tap_epochs.py::test_a_copied_commitment_cannot_be_opened"),
    Pointer(17, "any liar over epochs", "tests/contracts/Taps.t.sol::testFuzz_honestEarnAndLiarsLose"),
    Pointer(17, "copied results", "tests/contracts/VerifierCommittee.t.sol::test_results_cannotBeCopied"),
    Pointer(18, "capture rates", "tests/trust/test_verifiers.py::test_capture_rates_follow"),
    Pointer(19, "who passes unseen, on a chain", "tests/attacks/test_canaries.py::test_a_canary_is_forgiven_and_finds"),
    Pointer(19, "a cheat beside a canary", "tests/attacks/test_canaries.py::test_a_cheat_beside_a_canary"),
    Pointer(19, "told from other jobs", "tests/node/test_canary_jobs.py::test_a_canary_fails_where_it_is_recomputed"),
    Pointer(19, "opened by somebody else", "tests/contracts/Canary.t.sol::test_RevertWhen_anotherNodeOpens"),
    Pointer(19, "agreed afterwards", "tests/contracts/Canary.t.sol::test_RevertWhen_theLeafIsNotInTheBatch"),
    Pointer(19, "a false canary", "tests/contracts/CanaryJudgement.t.sol::test_aFalseCanary_hurtsNobody"),
    Pointer(
        *(19, "any plan over epochs"),
        "tests/contracts/CanaryJudgement.t.sol::testFuzz_honestNeverLose_cheatsNeverHideBehindCanaries",
    ),
    Pointer(20, "a verdict against the others'", "tests/contracts/Judgement.t.sol::test_deviation_isSlashed"),
    Pointer(20, "a lone accuser changes nothing", "tests/contracts/Judgement.t.sol::test_oneLiarChangesNothing"),
    Pointer(21, "a node behind a door", "tests/attacks/test_real_nodes.py::test_what_a_node_does_not_show"),
    Pointer(21, "no reveal", "tests/contracts/Judgement.t.sol::test_committedNotRevealed_isSlashed"),
    Pointer(22, "simulated", "tests/trust/test_simulate.py::test_no_strategy_earns_more_than_honest_work"),
    Pointer(22, "whitewashing", "tests/trust/test_simulate.py::test_whitewashing_costs_a_stake"),
    Pointer(23, "salts", "tests/attacks/test_limits.py::test_nothing_tells_an_audit"),
    Pointer(23, "the seed's block", "tests/contracts/SeatRegistry.t.sol::test_seed_isFixedFromTheBlock"),
    Pointer(24, "a fixed list", "tests/attacks/test_fleet.py::test_strained_inputs_accuse_nobody"),
    Pointer(24, "a search", "tests/attacks/test_strain.py::test_a_search_for_strained_inputs_accuses_nobody"),
    Pointer(
        24, "rows by descent, judged", "tests/attacks/test_strain.py::test_a_node_that_was_sent_rows_made_to_strain"
    ),
    Pointer(24, "exact kernels", "tests/attacks/test_strain.py::test_strained_inputs_give_the_same_bits"),
    Pointer(27, "spread, and bits", "tests/attacks/test_limits.py::test_a_model_made_to_be_accused"),
    Pointer(28, "vouchers", "tests/contracts/EscrowSettle.t.sol::test_voucher_noReplay_onAnotherChainOrContract"),
    Pointer(29, "challenging oneself", "tests/contracts/StakeVault.t.sol::test_dispute_selfDealingDoesNotPay"),
    Pointer(30, "no leaf of a job that broke off", "tests/attacks/test_broken_off.py::test_a_lie_that_breaks_off"),
    Pointer(
        30,
        "an exact model's tokens computed again",
        "tests/network/test_generate.py::test_an_invented_token_of_a_route_that_breaks_off",
    ),
    Pointer(31, "many machines", "tests/attacks/test_fleet.py::test_an_honest_fleet"),
)

ABSENT: dict[int, str] = {}

ARITHMETIC = frozenset({13, 14, 23})
"""Numbers whose figures come from the lot's own rule over made-up leaves: no node or verifier runs."""


def coverage() -> list[dict[str, Any]]:
    """One entry per number: strategies plugged into nodes, lies in messages, tests elsewhere."""
    found = []
    for number, title in LISTED.items():
        found.append(
            {
                "number": number,
                "title": title,
                "strategies": [item.name for item in ATTACKS if item.number == number],
                "messages": [item.name for item in MESSAGE_ATTACKS if item.number == number],
                "tests": [{"what": p.what, "test": p.test} for p in POINTERS if p.number == number],
                "absent": ABSENT.get(number, ""),
                "arithmetic_of_the_lot": number in ARITHMETIC,
            }
        )
    return found
