"""The verifier's dilemma as tables: one deviant of each kind among honest verifiers, lazy crowds, colluders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from efedllm_bench.trust import dilemma as d
from efedllm_bench.trust.experiments import Row, Say
from efedllm_bench.trust.simulate import Economy
from efedllm_deploy.profile import Profile

PROFILES = ("local", "testnet", "production")
MARGIN = 1.2
SEATS = 56
HOP_LAYERS = 4  # of the node whose stake and fee set the scale

TAPS = "taps"  # the contract's rule where a model is exact
RULES: dict[str, Row] = {
    TAPS: {},
    "taps, 0.1 % of nodes fail": {"failing": 0.001},
    "no taps (float models)": {"taps": False},
    "no taps, 0.1 % of nodes fail": {"taps": False, "failing": 0.001},
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


def crowds(economy: Economy, profile: Profile, epochs: int, say: Say) -> list[Row]:
    """Utility of honest and of lazy or colluding verifiers by their share; one node in a hundred cheats."""
    cases: Sequence[tuple[str, Row]] = (
        (d.LAZY_PASS, {"taps": False}),
        (d.LAZY_PASS, {}),
        (d.COLLUDE, {"taps": False}),
        (d.COLLUDE, {}),
    )
    rows = []
    for kind, changes in cases:
        for share in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
            say(f"crowd: {share:.0%} {kind}, {changes}")
            count = round(share * SEATS)
            played = game(profile, economy, failing=0.01, **changes)
            out = d.play(played, [d.HONEST] * (SEATS - count) + [kind] * count, epochs)
            rows.append(
                {
                    "kind": kind,
                    "taps": played.taps,
                    "share": share,
                    "honest": round(out[d.HONEST].per_audit, 4),
                    "deviant": round(out[kind].per_audit, 4),
                }
            )
    return rows
