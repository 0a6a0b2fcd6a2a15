"""`efedllm bench attacks`: everything, into one JSON object."""

from __future__ import annotations

import math
import os
import platform
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from efedllm_bench.attacks import audit_odds, cost, honest_fleet, other_schemes
from efedllm_bench.attacks.coverage import coverage
from efedllm_bench.attacks.detection import Tally, run_all
from efedllm_bench.attacks.economy import TOKENS, Losses, at_stake, detection_after, tokens_saved
from efedllm_bench.attacks.lab import Lab, Progress, prompts, publish
from efedllm_bench.attacks.lab_limits import calibrated
from efedllm_bench.attacks.lies.messages import MESSAGE_ATTACKS
from efedllm_bench.attacks.search import gradient, order_sensitive_models, strained_inputs
from efedllm_bench.attacks.search.strained_exact import search_exact
from efedllm_bench.attacks.statistics import Scores, auc, beyond_honest, expected_jobs, wilson
from efedllm_bench.cheats.catalog import ATTACKS, Attack, ExpectedVerdict, NumericProfile
from efedllm_bench.fleet.machines import machines
from efedllm_bench.processor import processor_name
from efedllm_deploy.profile import Profile as NetworkProfile

PROFILES: tuple[NumericProfile, ...] = ("exact", "float")
PARTS = ("strategies", "fleet", "cost")
RATES = (0.02, 0.05, 0.5)


@dataclass(frozen=True)
class AttackBench:
    """How much to run. Positions of a job are prompt + new - 1."""

    quick: bool = False

    profiles: tuple[NumericProfile, ...] = PROFILES

    parts: tuple[str, ...] = PARTS

    @property
    def partial(self) -> bool:
        """Whether other runs give the rest of the figures."""
        return (self.profiles, self.parts) != (PROFILES, PARTS)

    @property
    def jobs(self) -> int:
        """As many as give the first hop alone 18 audits, and three or two of them `detection.AUDITS`."""
        return 3 if self.quick else 18

    @property
    def prompt(self) -> int:
        return 40 if self.quick else 84

    @property
    def new(self) -> int:
        """Few are decoded one by one, as that is what takes long; tokens are drawn in longer jobs."""
        return 9 if self.quick else 13

    @property
    def drawn(self) -> int:
        """Tokens of each job whose sampling is cheated: where the model is sure, a few tell nothing apart."""
        return 36 if self.quick else 200

    @property
    def drawn_jobs(self) -> int:
        """As many as put the lower end of the interval above 0.9 when all are detected."""
        return 6 if self.quick else 36

    @property
    def texts(self) -> int:
        """Texts that the honest fleet computes, each of as many positions as a job."""
        return 6 if self.quick else 16

    @property
    def aimed(self) -> tuple[int, int]:
        """Texts, and positions of each, at which perturbations are aimed: enough to see one in a thousand."""
        return (4, 48) if self.quick else (36, 96)

    @property
    def effort(self) -> strained_inputs.Effort:
        """Of the search for strained inputs."""
        return strained_inputs.QUICK if self.quick else strained_inputs.Effort()


@dataclass(frozen=True)
class Curves:
    """Scores of the float profile per audited hop, for the plots: honest and by attack, by method."""

    honest: dict[str, Scores]
    attacks: dict[str, dict[str, Scores]]


def run(options: AttackBench, say: Progress) -> tuple[dict[str, Any], Curves | None]:
    """Run all attacks in the profiles asked for. Minutes; the JSON object, and what the plots of the float profile
    need."""
    torch.set_num_threads(1)
    result: dict[str, Any] = {
        "machine": {
            "cpu": processor_name(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "list": coverage(),
        "losses": {name: loss.report() for name, loss in losses().items()},
    }
    curves: Curves | None = None
    with tempfile.TemporaryDirectory(prefix="efedllm-attacks-") as folder:
        for profile in options.profiles:
            say(f"{profile}: publishing the bundled model, generating jobs")
            work = Path(folder) / profile
            work.mkdir()
            published = publish(profile, work)
            measured = None
            if profile == "float" and set(options.parts) != {"cost"}:
                measured = calibrated(published, quick=options.quick, say=say)
            lab = Lab(profile, published, work)
            lab.jobs = lab.generate(prompts(options.jobs, options.prompt), options.new)
            result[profile], made = _profile(lab, options, say)
            if measured is not None:
                result[profile]["calibration"] = measured
            curves = made if profile == "float" else curves
        if "float" in options.profiles and "strategies" in options.parts:
            say("models made to be accused, games on the lot")
            result["publisher_backdoor"] = backdoor(Path(folder))
            result["games"] = audit_odds.report(quick=options.quick)
    return result, curves


def _profile(lab: Lab, options: AttackBench, say: Progress) -> tuple[dict[str, Any], Curves | None]:
    report: dict[str, Any] = {
        "quick": options.quick,
        "jobs": options.jobs,
        "positions": options.prompt + options.new - 1,
    }
    curves = None
    if "strategies" in options.parts:
        found, curves = _strategies(lab, options, say)
        report |= found
    if "cost" in options.parts:
        (job,) = lab.generate(prompts(1, 64), 128)
        report["cost"] = cost.report(lab, job, lab.published.parent, quick=options.quick, say=say)
    if "fleet" in options.parts:
        searched, report["searched"] = _searched(lab, options, say)
        fleet = machines(eager=lab.profile == "float", quick=options.quick)
        findings = honest_fleet.run(
            lab,
            lab.published.parent,
            fleet,
            texts=prompts(options.texts, options.prompt + options.new - 1),
            decoded=1,
            long=512 if options.quick else 1000,
            say=say,
            searched=searched,
        )
        report["fleet"] = {"machines": [machine.name for machine in fleet], **findings.report()}
    return report, curves


def _searched(
    lab: Lab, options: AttackBench, say: Progress
) -> tuple[list[tuple[int, str, npt.NDArray[Any]]], dict[str, Any]]:
    """Inputs that a search made to strain honest machines, the worst of them for the fleet; and the report."""

    def told(text: str) -> None:
        say(f"{lab.profile} search: {text}")

    if lab.profile == "exact":
        found = search_exact(lab, options.effort, told)
        # The last mutations have gone furthest.
        return [(hop, name, x) for hop, some in found.computed.items() for name, x in some[-8:]], found.report()
    tried = strained_inputs.search(lab, options.effort, told)
    worst = strained_inputs.hardest(tried)
    found_of_half = {"bfloat16": strained_inputs.in_bfloat16(lab, worst)}
    return [(one.hop, one.name, one.given) for one in worst], strained_inputs.report(tried) | found_of_half


def _aimed(lab: Lab, options: AttackBench, say: Progress) -> dict[str, Any]:
    """Attack 9: by the last hop alone, also where it assumes a wider tolerance than it is judged by, and by all."""
    texts = prompts(*options.aimed)
    report: dict[str, Any] = {"share_of_tolerance_used": gradient.USED, "steps": [gradient.STEPS, gradient.JOINT_STEPS]}
    for times in (1.0, 4.0, 10.0):
        say(f"aimed perturbations of the last hop, {times:g} times the tolerance, {len(texts)} texts")
        name = "one_hop" if times == 1.0 else f"one_hop_{times:g}_times"
        report[name] = gradient.last_hop(lab, texts, times=times).report()
    report["all_hops"] = gradient.all_hops(lab, texts, lambda text: say(f"aimed perturbations: {text}")).report()
    return report


def _strategies(lab: Lab, options: AttackBench, say: Progress) -> tuple[dict[str, Any], Curves]:
    """Every strategy of a node and every lie, on real jobs."""
    drawn = lab.generate(prompts(options.drawn_jobs, 24), options.drawn, together=True)
    plain, tallies = run_all(lab, ATTACKS, lab.jobs, drawn, say)
    messages = [
        {
            "number": item.number,
            "name": item.name,
            "changes": item.changes,
            "judge": item.judge,
            "found": (found := item.run(lab, lab.jobs[1])),
            "as_expected": found == item.expected(lab.profile),
        }
        for item in MESSAGE_ATTACKS
    ]
    aimed = beside = None
    if lab.profile == "float":
        beside = _beside(tallies["bf16_compute"], tallies["precision_int8"])
        aimed = _aimed(lab, options, say)
    report = {
        "honest": _honest(plain),
        "attacks": [_attack(item, lab.profile, tallies[item.name], plain) for item in ATTACKS if item.name in tallies],
        "messages": messages,
        "aimed": aimed,
        "int8_beside_honest_bf16": beside,
    }
    return report, _curves(plain, tallies)


def _honest(plain: Tally) -> dict[str, Any]:
    return {
        "audits": plain.audits,
        "false_accusations": plain.failed,
        "largest": {name: float(plain.joined(name).max()) for name in other_schemes.METHODS},
    }


def _attack(item: Attack, profile: NumericProfile, tally: Tally, plain: Tally) -> dict[str, Any]:
    caught, slashed = wilson(tally.failed, tally.audits), wilson(tally.severe, tally.audits)
    expected = item.expected(profile)
    agrees = {
        ExpectedVerdict.SEVERE: tally.severe == tally.audits,
        ExpectedVerdict.CAUGHT: tally.failed == tally.audits,
        ExpectedVerdict.BELOW: tally.failed == 0,
        ExpectedVerdict.NONE: False,
    }[expected]
    saved = tokens_saved(tally.saved) if profile in item.timed else None
    return {
        "number": item.number,
        "name": item.name,
        "changes": item.changes,
        "expected": str(expected),
        "as_expected": agrees,
        "outcome": outcome(tally),
        "audits": tally.audits,
        "tokens_per_audit": tally.tokens // tally.audits,
        "detected": tally.failed,
        "severe": tally.severe,
        "interval_95": [round(caught.low, 4), round(caught.high, 4)],
        "severe_interval_95": [round(slashed.low, 4), round(slashed.high, 4)],
        "detected_after_audits": detection_after(caught),
        "largest_statistic": _range(tally),
        "codes": tally.codes,
        "jobs_until_caught": {str(rate): _finite(expected_jobs(rate, caught.share)) for rate in RATES},
        "saving_measured": None if not item.saves else profile in item.timed,
        "tokens_saved_per_1000": saved,
        "lost_in_fee_tokens": at_stake(slashed, losses()),
        "seconds_saved_share": None if saved is None else round(tally.saved, 3),
        "seconds_per_token_honest": _per_token(tally.honest_seconds, tally),
        "seconds_per_token_cheat": _per_token(tally.cheat_seconds, tally),
        "weight_bytes": [tally.weight_bytes, tally.published_bytes],
        "stake_in_fees_so_that_it_loses": {str(rate): _stake(saved, rate, slashed.share) for rate in RATES},
        "per_audit_auc": _aucs(tally, plain, worst=True),
        "per_score_auc": _aucs(tally, plain, worst=False),
    }


def outcome(tally: Tally) -> str:
    """What the audits of a strategy said, in words."""
    if tally.failed == 0:
        return "passes"
    if tally.failed < tally.audits:
        return "fails or passes" if tally.severe == 0 else "severe or passes"
    if tally.severe == 0:
        return "fails"
    return "severe" if tally.severe == tally.audits else "fails, some severe"


def _range(tally: Tally) -> list[float] | None:
    """Smallest and largest over the audited hops of the worst position's statistic; 1 fails, 10 is severe."""
    if not tally.scores["statistic"]:
        return None
    worst = _worst(tally.scores["statistic"])
    return [float(f"{value:.3g}") for value in (worst.min(), worst.max())]


def _stake(saved: float | None, rate: float, slashed: float) -> float | None:
    """G / (p d) - f with G the saved part of a fee f = 1 that only pays for compute: what must be lost when caught, in
    fees of a job, for the cheat to lose money; 0 when it saves nothing, None when that was not measured or no stake is
    lost. `saved`: tokens of 1,000."""
    if saved is None:
        return None
    if saved == 0.0:
        return 0.0
    return _finite(max(0.0, saved / TOKENS * expected_jobs(rate, slashed) - 1))


def _finite(value: float) -> float | None:
    return None if math.isinf(value) else round(value, 2)


def _per_token(seconds: float, tally: Tally) -> float | None:
    return float(f"{seconds / tally.positions:.4g}") if tally.positions else None


def _worst(parts: Sequence[Scores]) -> Scores:
    return np.asarray([part.max() for part in parts])


def _aucs(tally: Tally, plain: Tally, *, worst: bool) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for name in other_schemes.METHODS:
        if not tally.scores[name]:
            continue
        honest = _worst(plain.scores[name]) if worst else plain.joined(name)
        attack = _worst(tally.scores[name]) if worst else tally.joined(name)
        found[name] = {"auc": round(auc(honest, attack), 4), "beyond_honest": round(beyond_honest(honest, attack), 4)}
    return found


def _beside(honest: Tally, attack: Tally) -> dict[str, float]:
    """Whether the statistic tells an attack from nodes that are honest in a coarser arithmetic, per position."""
    plain, found = honest.joined("statistic"), attack.joined("statistic")
    return {"auc": round(auc(plain, found), 4), "beyond_honest": round(beyond_honest(plain, found), 4)}


def _curves(plain: Tally, tallies: dict[str, Tally]) -> Curves:
    names = [name for name, tally in tallies.items() if tally.scores["statistic"]]
    return Curves(
        {method: plain.joined(method) for method in other_schemes.METHODS},
        {name: {method: tallies[name].joined(method) for method in other_schemes.METHODS} for name in names},
    )


def backdoor(work: Path) -> dict[str, Any]:
    """Attack 27: honest spread of a normal and of a backdoored model, both dense; whether the exact bits hold."""
    labs = {
        "normal": Lab("float", publish("float", work / "dense", keep=1.0, whiten=False), work),
        **{
            name: Lab("exact" if name == "exact" else "float", path, work)
            for name, path in order_sensitive_models.publish_backdoored(work).items()
        },
    }
    spreads = {}
    for name in ("normal", "float"):
        (job,) = labs[name].generate(prompts(1, 40), 24)
        spreads[name] = order_sensitive_models.spread(labs[name], job)
    passes = order_sensitive_models.honest_pass(labs["float"], job)
    (job,) = labs["exact"].generate(prompts(1, 40), 24)
    return {
        "normal_spread": spreads["normal"],
        "backdoored_spread": spreads["float"],
        "times_wider": round(spreads["float"] / spreads["normal"], 1),
        "honest_float_nodes_pass": passes,
        "exact_bits_hold": order_sensitive_models.same_bits(labs["exact"], job),
    }


def losses() -> dict[str, Losses]:
    """What a node that an audit finds severe loses, by network profile."""
    return {name: Losses.of(NetworkProfile.load(name)) for name in ("testnet", "production")}
