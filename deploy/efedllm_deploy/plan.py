"""What a deployment consists of, as data: constructor arguments, roles, and how to recognise deployed code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eth_utils.crypto import keccak

from efedllm.chain.artifacts import Artifact
from efedllm_deploy.profile import Profile

DEFAULT_ADMIN_ROLE = bytes(32)

# Contracts whose administrator may change parameters or grant roles.
ADMINISTERED = ("EfedToken", "StakeVault", "SeatRegistry", "VerifierCommittee", "SessionEscrow")
# Terms of seats; the other parameters of a profile's committee are VerifierCommittee.Params.
_SEAT_TERMS = ("committee_size", "seat_stake")


@dataclass(frozen=True)
class Grant:
    """A role that one contract must hold on another."""

    contract: str
    role: bytes
    role_name: str
    holder: str


def grants(addresses: Mapping[str, str]) -> list[Grant]:
    """The roles that tie the contracts together."""
    return [
        Grant("SeatRegistry", keccak(text="COMMITTEE_ROLE"), "COMMITTEE", addresses["VerifierCommittee"]),
        Grant("StakeVault", keccak(text="SLASHER_ROLE"), "SLASHER", addresses["VerifierCommittee"]),
        Grant("StakeVault", keccak(text="SLASHER_ROLE"), "SLASHER for disputes", addresses["DisputeGame"]),
        Grant("VerifierCommittee", keccak(text="DISPUTE_ROLE"), "DISPUTE", addresses["DisputeGame"]),
        Grant("EfedToken", keccak(text="MINTER_ROLE"), "MINTER", addresses["RewardPool"]),
    ]


def constructor_args(
    name: str, profile: Profile, genesis: int, deployer: str, treasury: str, addresses: Mapping[str, str]
) -> list[Any]:
    """Arguments of one contract's constructor; `addresses` holds the contracts deployed before it."""
    clock = [genesis, profile.clock.epoch_length]
    committee, escrow, rewards = profile.committee, profile.escrow, profile.rewards
    match name:
        case "EfedToken":
            return [deployer, profile.token.cap, deployer, profile.token.initial_supply]
        case "StakeVault":
            return [addresses["EfedToken"], profile.vault.unbonding_period, deployer]
        case "ModelRegistry":
            return []
        case "NodeRegistry":
            return [
                addresses["StakeVault"],
                addresses["ModelRegistry"],
                *clock,
                profile.registry.min_stake_per_layer,
            ]
        case "SeatRegistry":
            return [addresses["StakeVault"], *clock, committee.model_dump(include=set(_SEAT_TERMS)), deployer]
        case "VerifierCommittee":
            return [
                addresses["StakeVault"],
                addresses["NodeRegistry"],
                addresses["SeatRegistry"],
                *clock,
                committee.model_dump(exclude=set(_SEAT_TERMS)),
                deployer,
            ]
        case "SessionEscrow":
            return [
                addresses["EfedToken"],
                addresses["NodeRegistry"],
                addresses["VerifierCommittee"],
                *clock,
                escrow.fee_bps,
                escrow.grace,
                deployer,
            ]
        case "CommitmentLog":
            return [addresses["NodeRegistry"], *clock, profile.log.challenge_window]
        case "RewardPool":
            return [
                addresses["EfedToken"],
                addresses["VerifierCommittee"],
                addresses["SessionEscrow"],
                addresses["StakeVault"],
                *clock,
                rewards.model_dump(),
                treasury,
            ]
        case "DisputeGame":
            return [
                addresses["StakeVault"],
                addresses["NodeRegistry"],
                addresses["VerifierCommittee"],
                addresses["CommitmentLog"],
                profile.disputes.slash_bps,
                profile.disputes.reward_bps,
            ]
    raise KeyError(name)


def code_matches(artifact: Artifact, code: bytes) -> bool:
    """Whether code on chain is this artifact's: equal wherever the artifact has no hole for an immutable."""
    template = bytes.fromhex(artifact.deployed_bytecode.removeprefix("0x"))
    return len(template) == len(code) and all(
        expected in (0, actual) for expected, actual in zip(template, code, strict=True)
    )
