"""The verifier's dilemma as tables: one deviant of each kind among honest verifiers, lazy crowds, colluders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from bench.trust import dilemma as d
from bench.trust.experiments import Row, Say
from bench.trust.simulate import Economy
from deploy.profile import Profile

PROFILES = ("local", "testnet", "production")
MARGIN = 1.2
SEATS = 56
CANARY_SHARE = 0.05
HOP_LAYERS = 4  # of the node whose stake and fee set the scale

RULES: dict[str, Row] = {
    "verdicts only": {},
    "verdicts, 0.1 % of nodes fail": {"failing": 0.001},
    "canaries": {"canary_share": CANARY_SHARE},
    "taps": {"taps": True},
    "taps and canaries": {"taps": True, "canary_share": CANARY_SHARE},
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


def break_even(economy: Economy) -> list[Row]:
    """What must be true of a profile for honest verifiers to earn: the dearest audit it pays, the share it needs."""
    rows = []
    for name in PROFILES:
        profile = Profile.load(name)
        for jobs in (24, 100):
            played = game(profile, economy, jobs=jobs)
            rows.append(
                {
                    "profile": name,
                    "jobs": jobs,
                    "reward_per_audit": round(played.reward, 5),
                    "dearest_audit_of_hop_cost": round(played.reward / economy.cost, 4),
                    "paid_share": round(played.phi_bps * played.verifiers_bps / 1e8, 4),
                    "needed_share": round(d.needed_share(played, MARGIN), 4),
                    "audit_load_of_compute": round(_load(played, economy), 4),
                    "deterring_canary_share": round(d.deterring_canaries(played), 8),
                    "deterring_failing_share": round(d.deterring_failures(played), 8),
                }
            )
    return rows


def _load(played: d.Game, economy: Economy) -> float:
    """All audits' compute, as a share of what the nodes spend."""
    return played.audit_rate * played.rule.committee_size * played.audit_cost / economy.cost


def edited_profile(name: str, sections: Mapping[str, Mapping[str, int]]) -> Profile:
    """A shipped profile with some values of some sections replaced."""
    profile = Profile.load(name)
    parts = {section: getattr(profile, section).model_copy(update=dict(v)) for section, v in sections.items()}
    return profile.model_copy(update=parts)


def proposed(
    economy: Economy, changes: Mapping[str, Mapping[str, Mapping[str, int]]], epochs: int, say: Say
) -> list[Row]:
    """`payoffs` under taps and canaries with sections of the profiles changed."""
    rows = []
    for name, sections in changes.items():
        edited = edited_profile(name, sections)
        for jobs in (24, 100):
            say(f"verifiers: {name} with {sections}, {jobs} jobs")
            played = game(edited, economy, jobs=jobs, taps=True, canary_share=CANARY_SHARE)
            deviants = d.STRATEGIES[1:]
            out = d.play(played, [d.HONEST] * (SEATS - len(deviants)) + list(deviants), epochs)
            alone = replace(played, canary_share=0.0)
            rows.append(
                {
                    "profile": name,
                    "changes": sections,
                    "jobs": jobs,
                    "audit_rate": round(played.audit_rate, 4),
                    "audit_load_of_compute": round(_load(played, economy), 4),
                    "paid_share": round(played.phi_bps * played.verifiers_bps / 1e8, 4),
                    "needed_share": round(d.needed_share(played, MARGIN), 4),
                    "reward_per_audit": round(played.reward, 5),
                    "cost_per_audit": played.audit_cost,
                    # All honest and no canary: nothing comes from others' forfeits or from jackpots.
                    "honest_alone": round(
                        d.play(alone, [d.HONEST] * SEATS, max(epochs // 4, 1))[d.HONEST].per_audit, 4
                    ),
                    "utility_per_audit": {key: round(value.per_audit, 4) for key, value in out.items()},
                }
            )
    return rows


def crowds(economy: Economy, profile: Profile, epochs: int, say: Say) -> list[Row]:
    """Utility of honest and of lazy or colluding verifiers by their share, where one node in a hundred cheats."""
    rows = []
    for kind, changes in (
        (d.LAZY_PASS, {}),
        (d.LAZY_PASS, {"taps": True}),
        (d.LAZY_PASS, {"taps": True, "canary_share": CANARY_SHARE}),
        (d.COLLUDE, {}),
        (d.COLLUDE, {"taps": True}),
        (d.COLLUDE, {"taps": True, "canary_share": CANARY_SHARE}),
    ):
        for share in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
            say(f"crowd: {share:.0%} {kind}, {changes or 'verdicts only'}")
            count = round(share * SEATS)
            played = game(profile, economy, failing=0.01, **changes)
            out = d.play(played, [d.HONEST] * (SEATS - count) + [kind] * count, epochs)
            rows.append(
                {
                    "kind": kind,
                    "taps": bool(changes.get("taps")),
                    "canaries": "canary_share" in changes,
                    "share": share,
                    "honest": round(out[d.HONEST].per_audit, 4),
                    "deviant": round(out[kind].per_audit, 4),
                }
            )
    return rows
