"""The verifier's dilemma as tables: one deviant of each kind among honest verifiers, lazy crowds, colluders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from efedllm_bench.trust import canaries
from efedllm_bench.trust import dilemma as d
from efedllm_bench.trust.experiments import Row, Say
from efedllm_bench.trust.simulate import Economy
from efedllm_deploy.profile import Profile

PROFILES = ("local", "testnet", "production")
MARGIN = 1.2
SEATS = 56
CANARIES = 1 / 500  # recommended: docs/trust.md
SHARES = (1 / 25_000, 1 / 5_000, 1 / 2_500, 1 / 1_000, CANARIES, 1 / 100, 1 / 20)
ROUTE_HOPS = 4  # of the jobs that a planter buys
HOP_LAYERS = 4  # of the node whose stake and fee set the scale

TAPS = "taps"  # the contract's rule where a model is exact
RULES: dict[str, Row] = {
    TAPS: {},
    "taps, 0.1 % of nodes fail": {"failing": 0.001},
    "no taps (float models)": {"taps": False},
    "no taps, 0.1 % of nodes fail": {"taps": False, "failing": 0.001},
    "no taps, 1 % canaries": {"taps": False, "canaries": 0.01},
    "no taps, 5 % canaries": {"taps": False, "canaries": 0.05},
    "taps, 5 % canaries": {"canaries": 0.05},
}


def game(profile: Profile, economy: Economy, **changes: object) -> d.Game:
    """The game of a profile; a seat's stake in fees follows from that of a node with HOP_LAYERS layers."""
    scale = economy.stake / (HOP_LAYERS * profile.registry.min_stake_per_layer)
    return d.of(profile, profile.committee.seat_stake * scale, **changes)


def payoffs(economy: Economy, epochs: int, say: Say) -> list[Row]:
    """One deviant of every kind among honest verifiers, under every rule and profile, at two loads."""
    rows = []
    for name in PROFILES:
        profile = Profile.load(name)
        for jobs in (24, 100):
            for rule, changes in RULES.items():
                say(f"verifiers: {name}, {jobs} jobs, {rule}")
                played = game(profile, economy, jobs=jobs, **changes)
                deviants = d.STRATEGIES[1:]
                out = d.play(played, [d.HONEST] * (SEATS - len(deviants)) + list(deviants), epochs)
                rows.append(
                    {
                        "profile": name,
                        "jobs": jobs,
                        "rule": rule,
                        "audit_rate": round(played.audit_rate, 4),
                        "seat_stake_fees": round(played.seat_stake),
                        "reward_per_audit": round(played.reward, 5),
                        "cost_per_audit": played.audit_cost,
                        "utility_per_audit": {key: round(value.per_audit, 4) for key, value in out.items()},
                        "honest_slashes_per_epoch": round(out[d.HONEST].slash_events_per_epoch, 6),
                    }
                )
    return rows


def break_even(
    economy: Economy, former: Mapping[str, Mapping[str, Mapping[str, int]]], epochs: int, say: Say
) -> list[Row]:
    """What must be true of a profile for honest verifiers to earn: the dearest audit it pays, the share it needs.

    `honest_alone` is played: everybody honest, so that nothing comes from others' forfeits. `former`: values of the
    profiles, by profile and section, to compare the shipped ones with.
    """
    shipped = [(name, "shipped", Profile.load(name)) for name in PROFILES]
    rows = []
    for name, parameters, profile in [*shipped, *((n, "former", edited_profile(n, v)) for n, v in former.items())]:
        for jobs in (24, 100):
            say(f"verifiers: {name}, {parameters} parameters, {jobs} jobs, all honest")
            played = game(profile, economy, jobs=jobs)
            alone = d.play(played, [d.HONEST] * SEATS, epochs)[d.HONEST]
            rows.append(
                {
                    "profile": name,
                    "parameters": parameters,
                    "changes": former[name] if parameters == "former" else {},
                    "jobs": jobs,
                    "audit_rate": round(played.audit_rate, 4),
                    "honest_alone": round(alone.per_audit, 4),
                    "honest_earn_from_jobs": d.least_jobs(played),
                    "nodes_emission_of_income": round(_emission_of_income(profile), 4),
                    "reward_per_audit": round(played.reward, 5),
                    "dearest_audit_of_hop_cost": round(played.reward / economy.cost, 4),
                    "paid_share": round(played.phi_bps * played.verifiers_bps / 1e8, 4),
                    "needed_share": round(d.needed_share(played, MARGIN), 4),
                    "audit_load_of_compute": round(_load(played, economy), 4),
                    "deterring_failing_share": round(d.deterring_failures(played), 8),
                }
            )
    return rows


def _load(played: d.Game, economy: Economy) -> float:
    """All audits' compute, as a share of what the nodes spend."""
    return played.audit_rate * played.rule.committee_size * played.audit_cost / economy.cost


def _emission_of_income(profile: Profile) -> float:
    """Emission's share of what nodes get when e0 does not bind and everybody weighs in fully; the rest is fees."""
    fees = 1 - profile.escrow.fee_bps / 1e4
    emission = profile.rewards.phi_bps * profile.rewards.servers_bps / 1e8
    return emission / (fees + emission)


def edited_profile(name: str, sections: Mapping[str, Mapping[str, int]]) -> Profile:
    """A shipped profile with some values of some sections replaced."""
    profile = Profile.load(name)
    parts = {section: getattr(profile, section).model_copy(update=dict(v)) for section, v in sections.items()}
    return profile.model_copy(update=parts)


def planted(economy: Economy, epochs: int, say: Say) -> list[Row]:
    """Float models, no taps, nobody cheats: what canaries make of lazy verifiers, and what they cost the planter.

    Of every share the formulas for one lazy verifier; of the recommended one also the game: four that pass and reveal,
    four that pass and keep silent when the others found a canary, among honest ones.
    """
    rows = []
    for name in PROFILES:
        profile = Profile.load(name)
        for jobs in (24, 100):
            for share in SHARES:
                played = game(profile, economy, jobs=jobs, taps=False, canaries=share)
                say(f"canaries: {name}, {jobs} jobs, one in {1 / share:,.0f}")
                cost = canaries.planting(played, ROUTE_HOPS, economy.cost, profile.escrow.fee_bps)
                shown = _lazy_and_honest(played, epochs) if share == CANARIES else {}
                rows.append(
                    {
                        "profile": name,
                        "jobs": jobs,
                        "share": round(share, 6),
                        "lazy": round(canaries.lazy_utility(played, SEATS, played.rule.deviation_bps), 4),
                        "lazy_silent": round(canaries.lazy_utility(played, SEATS, played.rule.no_reveal_bps), 4),
                        "honest": round(played.reward - played.audit_cost, 4),
                        "played": shown,
                        "planting": {key: float(f"{value:.4g}") for key, value in asdict(cost).items()},
                    }
                )
    return rows


def _lazy_and_honest(played: d.Game, epochs: int) -> Row:
    out = d.play(played, [d.HONEST] * (SEATS - 8) + [d.LAZY_PASS] * 4 + [d.SILENT] * 4, epochs)
    return {
        **{key: round(value.per_audit, 4) for key, value in out.items()},
        "honest_slashes_per_epoch": round(out[d.HONEST].slash_events_per_epoch, 6),
    }


def deterring(economy: Economy) -> list[Row]:
    """Canaries that one lazy verifier takes to earn less than honest work, and to earn nothing: one in so many jobs."""
    rows = []
    for name in PROFILES:
        for jobs in (24, 100, 400):
            played = game(Profile.load(name), economy, jobs=jobs, taps=False)
            for kind, bps in ((d.LAZY_PASS, played.rule.deviation_bps), (d.SILENT, played.rule.no_reveal_bps)):
                rows.append(
                    {
                        "profile": name,
                        "jobs": jobs,
                        "kind": kind,
                        "slash_bps": bps,
                        "below_honest_one_in": round(1 / canaries.deterring(played, SEATS, bps)),
                        "loses_one_in": round(1 / canaries.ruinous(played, SEATS, bps)),
                    }
                )
    return rows


def crowds(economy: Economy, profile: Profile, epochs: int, say: Say) -> list[Row]:
    """Utility of honest and of lazy or colluding verifiers by their share.

    One node in a hundred cheats, or none does and one job in a hundred is a canary.
    """
    cheats: Row = {"failing": 0.01}
    planted_only: Row = {"canaries": 0.01}
    cases: Sequence[tuple[str, Row]] = (
        (d.LAZY_PASS, {"taps": False, **cheats}),
        (d.LAZY_PASS, cheats),
        (d.LAZY_PASS, {"taps": False, **planted_only}),
        (d.COLLUDE, {"taps": False, **cheats}),
        (d.COLLUDE, cheats),
        (d.COLLUDE, {"taps": False, **planted_only}),
        (d.COLLUDE, planted_only),
    )
    rows = []
    for kind, changes in cases:
        for share in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
            say(f"crowd: {share:.0%} {kind}, {changes}")
            count = round(share * SEATS)
            played = game(profile, economy, **changes)
            out = d.play(played, [d.HONEST] * (SEATS - count) + [kind] * count, epochs)
            rows.append(
                {
                    "kind": kind,
                    "taps": played.taps,
                    "canaries": played.canaries,
                    "share": share,
                    "honest": round(out[d.HONEST].per_audit, 4),
                    "deviant": round(out[kind].per_audit, 4),
                }
            )
    return rows
