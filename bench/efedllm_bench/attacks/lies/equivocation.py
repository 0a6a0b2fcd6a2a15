"""A node signs two commitments for one job and hop (15): one for its batch, another for the next hop.

The search of a verifier finds both; its neighbour answers in this process. The compiled DisputeGame judges them in an
EVM in this process, where the node is staked and registered.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import Any

from efedllm.commitments.eip712 import Domain
from efedllm.commitments.equivocation import Equivocation
from efedllm.commitments.hashing import keccak
from efedllm.commitments.messages import HopCommit, SignedCommit
from efedllm.commitments.signing import Signer
from efedllm.errors import ChainError
from efedllm_bench.attacks.lab import LAYERS, SIGNERS, Lab, LabJob
from efedllm_bench.trust.evm import COMMIT, Network, address_of
from efedllm_deploy.profile import Profile
from efedllm_verifier.equivocation_search import AuditedCommit, EquivocationSearch
from efedllm_verifier.fetch import UnavailableError
from efedllm_verifier.node_directory import Party

HOP = 1
LIAR, NEIGHBOUR, ACCUSER = address_of("liar"), address_of("neighbour"), address_of("accuser")
EXCLUDED = 0


@dataclass(frozen=True)
class NextHop:
    """What the hop after the liar answers with: its own commitment, and the one that it was given."""

    own: SignedCommit
    given: SignedCommit | None

    async def receipt(self, _endpoint: str, _job_id: bytes, *, once: bool = False) -> dict[str, Any]:
        assert once
        return self.own.to_json()

    async def previous(self, _endpoint: str, _job_id: bytes) -> dict[str, Any]:
        if self.given is None:
            raise UnavailableError("not shown")
        return self.given.to_json()


def played(lab: Lab, job: LabJob) -> str:
    """Accuse a node that signed two commitments, an honest node, and a node about which its neighbour lies.

    Returns "slashed" where the first alone loses its share of the stake and is excluded, and the accuser is paid; else
    what is wrong.
    """
    profile = Profile.load("local")
    net = Network(profile, LAYERS)
    stake = LAYERS * int(profile.registry.min_stake_per_layer)
    for node, key in ((LIAR, SIGNERS[HOP]), (NEIGHBOUR, SIGNERS[HOP + 1])):
        net.stake(node, stake)
        net.register(node, LAYERS)
        net.set_signer(node, key.address)
    net.move_to(2, COMMIT)
    domain = net.efl_domain
    batched = _signed(domain, lab.commit(job, HOP), SIGNERS[HOP])
    told = _signed(domain, replace(batched.commit, in_root=keccak(b"another input")), SIGNERS[HOP])
    if _found(lab, job, domain, batched, batched, batched) or _found(lab, job, domain, batched, told, None):
        return "an honest node is accused"
    made_up = SignedCommit(told.commit, SIGNERS[HOP + 1].sign(told.commit.digest(domain)))
    if _found(lab, job, domain, batched, made_up, made_up):
        return "a made-up commitment accuses"
    proof = _found(lab, job, domain, batched, told, told)
    if proof is None:
        return "not found"
    if not _refused(net, replace(proof, node=NEIGHBOUR)) or not _refused(net, _crossed(proof)):
        return "a wrong proof is taken"
    slashed, reward = _prove(net, proof)
    cost, share = profile.disputes.slash_bps, profile.disputes.reward_bps
    paid = net.balance_of(ACCUSER)
    right = (slashed, reward, paid) == (stake * cost // 10_000, slashed * share // 10_000, reward)
    kept = (net.stake_of(LIAR)[0], net.stake_of(NEIGHBOUR)[0]) == (stake - slashed, stake)
    standing = net.standing(LIAR) == EXCLUDED != net.standing(NEIGHBOUR)
    return "slashed" if right and kept and standing and _refused(net, proof) else "wrong amounts"


def _found(
    lab: Lab, job: LabJob, domain: Domain, batched: SignedCommit, named: SignedCommit, shown: SignedCommit | None
) -> Equivocation | None:
    """What a verifier finds that audits `batched` where the next hop names one commitment and shows another."""
    own = replace(lab.commit(job, HOP + 1), prev_commit=named.commit.digest(domain))
    answers = NextHop(_signed(domain, own, SIGNERS[HOP + 1]), shown)
    parties = [Party("", frozenset({SIGNERS[hop].address})) for hop in (HOP, HOP + 1)]
    audited = AuditedCommit(batched, LIAR, parties[0], None, None, parties[1])
    proofs = asyncio.run(EquivocationSearch(answers, domain).look([audited]))
    return proofs[0] if proofs else None


def _signed(domain: Domain, commit: HopCommit, key: Signer) -> SignedCommit:
    return SignedCommit(commit, key.sign(commit.digest(domain)))


def _prove(net: Network, proof: Equivocation) -> tuple[int, int]:
    """(slashed, reward), wei. Raises ChainError where the contract refuses."""
    return net.prove_equivocation(ACCUSER, proof.node, proof.first, proof.second)


def _refused(net: Network, proof: Equivocation) -> bool:
    try:
        _prove(net, proof)
    except ChainError:
        return True
    return False


def _crossed(proof: Equivocation) -> Equivocation:
    """The second commitment with the signature of the first."""
    return replace(proof, second=SignedCommit(proof.second.commit, proof.first.signature))
