"""From a file of evidence to the contract: sent once, put off while nothing can come of it, then settled."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from eth_account import Account

from efedllm.chain import Chain
from efedllm.chain.disputes import EvidenceFolder, prove
from efedllm.commitments.hashing import keccak
from efedllm.commitments.messages import Domain
from efedllm.commitments.signing import Signer
from efedllm.logs import get_logger
from efedllm_deploy.profile import Profile
from efedllm_verifier.equivocation_search import EquivocationSearch
from efedllm_verifier.fetch import NodeReader
from efedllm_verifier.metrics import VerifierMetrics
from efedllm_verifier.prosecutor import Prosecutor
from tests.chain.test_disputes import KEY, STAKE, a_lie, registered
from tests.live_network import LiveNetwork


@pytest_asyncio.fixture
async def network(ganache: str, tmp_path: Path) -> AsyncIterator[tuple[LiveNetwork, Chain]]:
    """Contracts of their own, and account 1 as a node with a stake and KEY."""
    live = LiveNetwork.deploy(ganache, Profile.load("local"), tmp_path)
    async with await live.connect(1) as node:
        await registered(live, node)
        yield live, node


def prosecutor(chain: Chain, folder: EvidenceFolder) -> Prosecutor:
    return Prosecutor(
        chain, EquivocationSearch(NodeReader(), chain.efl_domain), folder, VerifierMetrics(), get_logger("test")
    )


async def cases(chain: Chain) -> int:
    return len(await chain.history("DisputeGame", "EquivocationProven"))


async def test_each_case_goes_to_the_contract_once(network: tuple[LiveNetwork, Chain], tmp_path: Path) -> None:
    live, node = network
    me, folder = node.account_address, EvidenceFolder(tmp_path / "evidence")
    async with await live.connect(2) as accuser:
        domain = accuser.efl_domain
        taken, foreign = keccak(b"taken"), keccak(b"foreign")
        await prove(accuser, a_lie(domain, me, taken))
        for proof in (
            a_lie(domain, me),
            a_lie(domain, me, taken),
            a_lie(domain, me, keccak(b"stranger"), (KEY, Signer(keccak(b"stranger")))),
            a_lie(Domain(domain.chain_id + 1, domain.contract), me, foreign),
        ):
            assert folder.keep(proof) is not None
        (folder.path / "broken.json").write_text("{")
        at_work = prosecutor(accuser, folder)
        for epoch in (1, 1, 2):
            await at_work.tick(epoch)
            assert await cases(accuser) == 2
            # What is of another network, or no proof at all, stays where it is.
            assert {path.name for path in folder.open()} == {
                "broken.json",
                a_lie(Domain(domain.chain_id + 1, domain.contract), me, foreign).name,
            }
        assert (await accuser.node(me)).stake_active == STAKE // 4


async def test_without_stake_or_gas_a_case_waits_for_the_next_epoch(
    network: tuple[LiveNetwork, Chain], tmp_path: Path
) -> None:
    live, node = network
    me, folder = node.account_address, EvidenceFolder(tmp_path / "evidence")
    assert folder.keep(a_lie(node.efl_domain, me)) is not None
    await node.contracts.stake_vault.unbond(STAKE)
    await node.rpc.request("evm_increaseTime", [1000])
    await node.rpc.request("evm_mine", [])
    await node.contracts.stake_vault.withdraw()
    async with await live.connect(2) as accuser:
        at_work = prosecutor(accuser, folder)
        await at_work.tick(1)
        assert len(folder.open()) == 1
        await node.ensure_allowance("StakeVault", STAKE)
        await node.contracts.stake_vault.stake(STAKE)
        await at_work.tick(1)
        assert await cases(accuser) == 0
        poor = Account.create()
        async with await Chain.connect(live.rpc_url, live.deployment, poor) as without_gas:
            await prosecutor(without_gas, folder).tick(2)
        assert (await cases(accuser), len(folder.open())) == (0, 1)
        await at_work.tick(2)
        assert (await cases(accuser), folder.open()) == (1, [])
    assert (await node.node(me)).stake_active == STAKE // 2


@pytest.mark.parametrize("again", [False, True])
async def test_evidence_that_was_kept_before_a_crash_is_taken_up(
    network: tuple[LiveNetwork, Chain], tmp_path: Path, again: bool
) -> None:
    """The transaction was sent, or was not, when the process ended: the next one asks the chain."""
    live, node = network
    me, folder = node.account_address, EvidenceFolder(tmp_path / "evidence")
    proof = a_lie(node.efl_domain, me)
    folder.keep(proof)
    async with await live.connect(2) as accuser:
        if again:
            await prove(accuser, proof)
        await prosecutor(accuser, EvidenceFolder(folder.path)).tick(1)
        assert (await cases(accuser), folder.open()) == (1, [])
