"""Two signatures made in Python against the deployed contracts, on both development chains."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from efedllm.chain import Chain
from efedllm.chain.amounts import WEI
from efedllm.chain.contracts import ModelParams
from efedllm.chain.disputes import prove
from efedllm.chain.ledger import read_ledger
from efedllm.chain.reverts import RevertError
from efedllm.commitments.equivocation import Equivocation
from efedllm.commitments.hashing import keccak
from efedllm.commitments.messages import Domain, HopCommit, SignedCommit
from efedllm.commitments.signing import Signer
from efedllm.errors import ChainError
from efedllm_deploy.profile import Profile
from tests.live_network import LiveNetwork

STAKE = 100 * WEI
KEY, NEW_KEY = Signer(keccak(b"key")), Signer(keccak(b"new key"))
COMMIT = HopCommit(
    job_id=keccak(b"job"),
    spec_hash=keccak(b"spec"),
    hop=0,
    lo=0,
    hi=4,
    profile=1,
    wire_dtype=1,
    tokens=2**32 - 1,
    model_id=keccak(b"model"),
    shard_root=keccak(b"shard"),
    in_root=keccak(b"in"),
    out_root=keccak(b"out"),
    tokens_hash=keccak(b"tokens"),
    aux_root=keccak(b"taps"),
    prev_commit=bytes(32),
    epoch=2**64 - 1,
)


@pytest_asyncio.fixture(params=["ganache", "anvil"])
async def network(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[LiveNetwork, Chain]]:
    """Contracts of their own, and account 1 as a node with a stake and KEY."""
    url: str = request.getfixturevalue(request.param)
    live = LiveNetwork.deploy(url, Profile.load("local"), tmp_path)
    async with await live.connect(1) as node:
        await registered(live, node)
        yield live, node


async def registered(live: LiveNetwork, node: Chain) -> None:
    """Give an account a stake, and register it with KEY for a model."""
    async with await live.connect(0) as admin:
        await admin.contracts.efed_token.transfer(node.account_address, STAKE)
        params = ModelParams(keccak(b"weights"), 4, 8, 10_000, 0, 0, bytes(32), bytes(32))
        done = await admin.contracts.model_registry.register(bytes(32), params, keccak(b"manifest"), "")
        model_id = done.event("ModelRegistered").args["modelId"]
    await node.ensure_allowance("StakeVault", STAKE)
    await node.contracts.stake_vault.stake(STAKE)
    await node.contracts.node_registry.register(model_id, 0, 4, 1, KEY.address, keccak(b"shard"), "http://127.0.0.1:1")


def signed(domain: Domain, commit: HopCommit, key: Signer) -> SignedCommit:
    return SignedCommit(commit, key.sign(commit.digest(domain)))


def a_lie(domain: Domain, node: str, job: bytes = COMMIT.job_id, keys: tuple[Signer, Signer] = (KEY, KEY)) -> Any:
    first = replace(COMMIT, job_id=job)
    second = replace(first, out_root=keccak(b"other"))
    return Equivocation(domain, node, signed(domain, first, keys[0]), signed(domain, second, keys[1]))


async def test_python_and_contract_hash_a_commit_alike(chain: Chain) -> None:
    domain = chain.efl_domain
    commits = [COMMIT]
    for part in fields(HopCommit):
        value = getattr(COMMIT, part.name)
        changed: Any = (
            keccak(value)
            if isinstance(value, bytes)
            else {"hi": 5, "profile": 2, "wire_dtype": 2}.get(part.name, value ^ 1 if part.name != "lo" else 3)
        )
        commits.append(replace(COMMIT, **{part.name: changed}))
    for commit in commits:
        assert await chain.contracts.dispute_game.commit_digest(commit) == commit.digest(domain)
    assert len({commit.digest(domain) for commit in commits}) == len(commits)


async def test_a_proof_is_paid_once_and_excludes(network: tuple[LiveNetwork, Chain]) -> None:
    live, node = network
    me = node.account_address
    async with await live.connect(2) as accuser:
        proof = a_lie(node.efl_domain, me)
        done = await prove(accuser, proof)
        event = done.event("EquivocationProven").args
        assert (event["node"], event["accuser"], event["jobId"]) == (me, accuser.account_address, COMMIT.job_id)
        assert (event["slashed"], event["reward"]) == (STAKE // 2, STAKE * 3 // 20)
        assert event["digestA"] == proof.first.commit.digest(proof.domain)
        assert await accuser.token_balance(accuser.account_address) == STAKE * 3 // 20
        info = await accuser.node(me)
        assert (info.stake_active, info.standing, info.offences) == (STAKE // 2, 0, 1)
        assert info.jailed_until == event["excludedUntil"]
        assert await accuser.contracts.dispute_game.is_proven(me, COMMIT.job_id, 0)
        # Every EFED is accounted for.
        ledger = await read_ledger(accuser)
        assert ledger.problems == []
        assert ledger.burned == STAKE // 2 - STAKE * 3 // 20
        with pytest.raises(RevertError) as caught:
            await prove(accuser, proof)
        assert caught.value.name == "AlreadyProven"
        # With keys that changed, and with one of each.
        await node.contracts.node_registry.update(1, NEW_KEY.address)
        for job, keys in ((b"a", (NEW_KEY, NEW_KEY)), (b"b", (KEY, NEW_KEY)), (b"c", (KEY, KEY))):
            await prove(accuser, a_lie(node.efl_domain, me, keccak(job), keys))
        assert (await accuser.node(me)).stake_active == STAKE // 16


async def test_what_proves_nothing_costs_nothing(network: tuple[LiveNetwork, Chain]) -> None:
    live, node = network
    me = node.account_address
    async with await live.connect(2) as accuser:
        stranger = Signer(keccak(b"stranger"))
        with pytest.raises(RevertError) as caught:
            await prove(accuser, a_lie(node.efl_domain, me, keys=(KEY, stranger)))
        assert caught.value.name == "NotSignedByNode"
        assert "dispute check" in caught.value.hint
        with pytest.raises(RevertError) as caught:
            await prove(accuser, a_lie(node.efl_domain, accuser.account_address))
        assert caught.value.name == "NotSignedByNode"
        elsewhere = Domain(node.chain_id + 1, node.efl_domain.contract)
        with pytest.raises(ChainError) as refused:
            await prove(accuser, a_lie(elsewhere, me))
        assert refused.value.code == "wrong-network"
    assert (await node.node(me)).stake_active == STAKE
