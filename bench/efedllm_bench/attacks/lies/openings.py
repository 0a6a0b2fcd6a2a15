"""Lies about canaries (19) that only contracts judge, told to the compiled ones in an in-process EVM.

A node stakes, posts batches and opens canaries there as on any chain; the fault digests are those of a verifier. Each
lie returns the error or the judgement of the contracts, which must take the honest opening of the same canary.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from efedllm.chain.artifacts import artifact
from efedllm.commitments.canary import fingerprint
from efedllm.commitments.hashing import keccak
from efedllm.errors import ChainError
from efedllm_bench.attacks.lab import LAYERS, Job, Lab
from efedllm_bench.trust.committee import Said
from efedllm_bench.trust.evm import COMMIT, REVEAL, TALLY, Network, address_of
from efedllm_bench.trust.planted import ORDINARY, Planted, Planter
from efedllm_deploy.profile import Profile
from efedllm_verifier.audit_report import LeafReport, attested_digest
from efedllm_verifier.verdict import FULL_UNITS, Verdict
from efedllm_verifier.statistic import Outcome

NODE = address_of("node")
MEMBERS = tuple(address_of(f"verifier {index}") for index in range(3))
EPOCH = 2  # the first that seats taken in epoch 1 judge


@dataclass
class Chain:
    """The contracts with one node, a full committee and a client, and one planted canary in a batch of EPOCH."""

    net: Network
    canary: Planted

    @classmethod
    def ready(cls) -> Chain:
        """The canary is posted and the epoch over."""
        profile = Profile.load("local")
        net = Network(profile, LAYERS)
        stake = int(profile.committee.seat_stake) + LAYERS * int(profile.registry.min_stake_per_layer)
        for who in (NODE, *MEMBERS):
            net.stake(who, stake)
        net.register(NODE, LAYERS)
        for member in MEMBERS:
            net.take_seat(member)
        planter = Planter(net, [NODE], LAYERS)
        net.move_to(EPOCH, COMMIT)
        (canary,) = planter.plant(NODE, EPOCH, 1)
        net.move_to(EPOCH + 1, COMMIT)
        return cls(net, canary)

    def open(self, opening: dict[str, Any]) -> str:
        """Name of the contract's error; empty when it took the opening. Raises ChainError for any other failure."""
        try:
            self.net.open_canaries(NODE, EPOCH, [opening])
        except ChainError as error:
            return _error_name(error)
        return ""

    def judged(self, failed: list[bytes]) -> tuple[int, int, int]:
        """Let every member find `failed`, the node open its canary, and the epoch end: (verdicts forgiven, active stake
        before, and after)."""
        net = self.net
        seed = net.fix_seed(EPOCH)
        reports = [
            LeafReport(0, index, leaf, FULL_UNITS, Outcome.SEVERE, "wrong-output") for index, leaf in enumerate(failed)
        ]
        said = Said(Verdict(0, FULL_UNITS * len(failed), True), fingerprint(attested_digest(seed, reports)))
        attestations = {member: net.attestation(EPOCH, member, {NODE: said}) for member in MEMBERS}
        for member, attestation in attestations.items():
            net.commit(member, attestation)
        net.move_to(EPOCH + 1, REVEAL)
        for member, attestation in attestations.items():
            net.reveal(member, attestation)
        before, _ = net.stake_of(NODE)
        if error := self.open(self.canary.opening):
            raise ChainError("reverted", f"The contract does not take an honest opening: {error}.")
        net.move_to(EPOCH + 1, TALLY)
        net.finalize(EPOCH, [NODE])
        return net.forgiven(EPOCH, NODE), before, net.stake_of(NODE)[0]


def _error_name(error: ChainError) -> str:
    """Which custom error of CanaryRegistry a revert names."""
    found = re.search(r"output: 0x([0-9a-f]{8})", error.message)
    for item in artifact("CanaryRegistry").abi if found else ():
        types = ",".join(part["type"] for part in item.get("inputs", ()))
        signature = f"{item.get('name')}({types})"
        if item["type"] == "error" and found and keccak(signature.encode())[:4].hex() == found[1]:
            return str(item["name"])
    raise error


def afterwards(_lab: Lab, _job: Job) -> str:
    """A cheat is drawn for an audit, and a client is found who signs for it: the salt is on chain."""
    chain = Chain.ready()
    chain.net.fix_seed(EPOCH)
    chain.net.move_to(EPOCH + 1, REVEAL)
    # The same job and consent under a nonce that the node chose once it knew what is audited.
    refused = chain.open({**chain.canary.opening, "nonce": keccak(b"chosen afterwards")})
    if error := chain.open(chain.canary.opening):
        return f"the canary that was posted is refused: {error}"
    return refused


def behind(_lab: Lab, _job: Job) -> str:
    """A cheat in the epoch of a canary, hoping to be forgiven with it."""
    alone = Chain.ready()
    forgiven, before, after = alone.judged([alone.canary.leaf])
    if (forgiven, after) != (len(MEMBERS), before):
        return "the canary alone is not forgiven"
    beside = Chain.ready()
    forgiven, before, after = beside.judged([beside.canary.leaf, ORDINARY])
    return "slashed, nothing forgiven" if forgiven == 0 and after < before else ""
