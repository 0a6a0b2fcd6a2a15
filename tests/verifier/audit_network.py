"""A staked network for audits: real contracts on Ganache, served nodes, verifiers in this process or their own."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import efedllm_deploy
from efedllm.chain import Chain, keystore
from efedllm.chain.amounts import WEI
from efedllm.chain.connection import Rpc
from efedllm.chain.types import ChainTime
from efedllm.commitments.canonical import WireDtype
from efedllm.commitments.hashing import keccak
from efedllm.commitments.messages import SessionKey
from efedllm.commitments.signing import Signer
from efedllm.logs import get_logger
from efedllm.models.manifest import Manifest
from efedllm.sampling.float import SamplingSpec
from efedllm_deploy.deployer import deploy_contracts
from efedllm_deploy.devclock import DevClock
from efedllm_deploy.local import dev_account
from efedllm_deploy.profile import Profile
from efedllm_deploy.publish import publish
from efedllm_verifier.actions import take_seat
from efedllm_verifier.app import AuditorWrapper, Verifier, open_verifier
from efedllm_verifier.config import VerifierConfig
from efedllm_verifier.metrics import Health, VerifierMetrics
from efedllm_verifier.plan import Timing
from tests.live_network import LiveNetwork
from tests.verifier.audit_lab import RANGES, Trace, job_spec
from tests.verifier.served_node import Job, Lies, ServedNode

NODES, VERIFIERS, CLIENT = (1, 2, 3), (4, 5, 6), 7
PASSWORD = "audit"
EPOCH_SECONDS = 1200
PROFILES = Path(efedllm_deploy.__file__).parent / "profiles"


@dataclass
class Network:
    """Nodes are staked and registered, verifiers staked and seated, a session is open."""

    live: LiveNetwork
    admin: Chain
    clock: DevClock
    model_id: bytes
    manifest: Manifest
    chains: dict[int, Chain]
    signers: tuple[Signer, ...]
    client: Signer
    key: SessionKey
    home: Path
    published: Path
    stack: AsyncExitStack
    served: list[ServedNode] = field(default_factory=list)

    def node(self, hop: int) -> str:
        return self.chains[NODES[hop]].account_address

    async def now(self) -> ChainTime:
        return await self.admin.now()

    def job(
        self, trace: Trace, epoch: int, sampling: SamplingSpec, prompt: Sequence[int], new: int, seq: int = 0
    ) -> Job:
        """A job of the open session whose every byte is `trace`."""
        spec = job_spec(prompt, new, WireDtype.F32, sampling)
        session_id = self.key.session_id(*self.admin.escrow_domain)
        spec = type(spec)(**{**spec.__dict__, "session_id": session_id, "job_seq": seq})
        roots = tuple(self.manifest.shard_root(*layers) for layers in RANGES)
        return Job(
            self.admin.efl_domain,
            self.key,
            self.client,
            spec,
            trace,
            RANGES,
            self.signers,
            roots,
            self.manifest.hidden,
            epoch,
        )

    async def serve(self, jobs: Sequence[Job], lies: dict[int, Lies] | None = None) -> None:
        """Every node serves its hop of the jobs at the endpoint it then registers."""
        for hop in range(len(NODES)):
            node = ServedNode(self.node(hop), hop, jobs, (lies or {}).get(hop, Lies()))
            await self.stack.enter_async_context(node)
            self.served.append(node)
            await self.chains[NODES[hop]].contracts.node_registry.set_endpoint(node.url)

    async def post(self, roots: dict[int, bytes]) -> None:
        """Post every node's batch, under another root than its own where `roots` says so."""
        epoch = (await self.now()).epoch
        for hop, node in enumerate(self.served):
            chain = self.chains[NODES[hop]]
            seq = await chain.contracts.commitment_log.next_seq(node.address)
            root = roots.get(hop, node.batch_root(self.admin.efl_domain, epoch, seq))
            await chain.contracts.commitment_log.post(epoch, seq, root, len(node.jobs))

    def config(self, index: int, *, models: bool = True, poll: float = 0.1, stake: int | None = None) -> VerifierConfig:
        """Configuration of the verifier with account `index`; makes its keystore."""
        home = self.home / f"verifier{index}"
        path = home / "key.json"
        if not path.exists():
            keystore.create(path, PASSWORD, light=True, private_key=bytes(self.live.account(index).key))
        return VerifierConfig(
            rpc_url=self.live.rpc_url,
            deployment=self.live.path,
            keystore=path,
            password=PASSWORD,
            home=home,
            models=(str(self.published),) if models else (),
            stake=stake,
            poll=poll,
            # Everybody tries everything at once: being late is a normal answer.
            timing=Timing(stagger=0),
        )

    def chain_address(self, index: int) -> str:
        return str(self.live.account(index).address)


@contextlib.asynccontextmanager
async def own_contracts(rpc_url: str, out: Path) -> AsyncIterator[LiveNetwork]:
    """The local profile with epochs long enough for a busy machine: a local chain's clock runs while we compute."""
    text = (PROFILES / "local.toml").read_text()
    profile = out / "slow.toml"
    profile.write_text(re.sub(r"epoch_length = \d+", f"epoch_length = {EPOCH_SECONDS}", text))
    rpc = Rpc(rpc_url)
    snapshot = await rpc.request("evm_snapshot")
    done = await deploy_contracts(rpc_url, dev_account(), Profile.load(str(profile)), out)
    assert done.deployment.epoch_length == EPOCH_SECONDS
    yield LiveNetwork(rpc_url, done.deployment, done.path)
    await rpc.request("evm_revert", [snapshot])
    await rpc.close()


@contextlib.asynccontextmanager
async def staked_network(live: LiveNetwork, home: Path, published: Path) -> AsyncIterator[Network]:
    """Publish the model, stake three nodes over RANGES and three verifiers, open a session."""
    async with AsyncExitStack() as stack:
        admin = await stack.enter_async_context(await live.connect(0))
        model = await publish(admin, published)
        manifest = Manifest.load(published)
        chains = {i: await stack.enter_async_context(await live.connect(i)) for i in (*NODES, CLIENT)}
        signers = tuple(Signer(keccak(f"signer {hop}".encode())) for hop in range(len(NODES)))
        for hop, index in enumerate(NODES):
            chain = chains[index]
            await admin.contracts.efed_token.transfer(chain.account_address, 200 * WEI)
            await chain.ensure_allowance("StakeVault", 200 * WEI)
            await chain.contracts.stake_vault.stake(200 * WEI)
            root = manifest.shard_root(*RANGES[hop])
            endpoint = "http://127.0.0.1:1"
            await chain.contracts.node_registry.register(
                model.model_id, *RANGES[hop], 1000, signers[hop].address, root, endpoint
            )
        client_chain, client = chains[CLIENT], Signer(keccak(b"session key"))
        await admin.contracts.efed_token.transfer(client_chain.account_address, 100 * WEI)
        await client_chain.ensure_allowance("SessionEscrow", 100 * WEI)
        await client_chain.contracts.session_escrow.deposit(100 * WEI)
        for index in VERIFIERS:
            async with await live.connect(index) as chain:
                await admin.contracts.efed_token.transfer(chain.account_address, 200 * WEI)
                await take_seat(chain, None, get_logger("test"))
        now = await admin.now()
        key = SessionKey(
            client=client_chain.account_address,
            signer=client.address,
            model_id=model.model_id,
            nonce=0,
            expiry=now.timestamp + 30 * 86_400,
            max_price_per_ktok=3000,
            nodes=tuple(chains[index].account_address for index in NODES),
            shares=(4000, 3000, 3000),
        )
        await client_chain.contracts.session_escrow.open(key, 50 * WEI)
        yield Network(
            live,
            admin,
            live.clock(admin),
            model.model_id,
            manifest,
            chains,
            signers,
            client,
            key,
            home,
            published,
            stack,
        )


@contextlib.asynccontextmanager
async def rolled_back(network: Network, home: Path) -> AsyncIterator[Network]:
    """The network with its own home and servers; what is done on chain meanwhile is undone."""
    snapshot = await network.admin.rpc.request("evm_snapshot")
    async with AsyncExitStack() as stack:
        yield replace(network, home=home, stack=stack, served=[])
    await network.admin.rpc.request("evm_revert", [snapshot])


@contextlib.asynccontextmanager
async def verifiers(network: Network, indexes: Sequence[int] = VERIFIERS) -> AsyncIterator[list[Verifier]]:
    """Seated verifiers in this process."""
    async with AsyncExitStack() as stack:
        made = []
        for index in indexes:
            made.append(await enter_verifier(stack, network.config(index)))
        yield made


async def enter_verifier(
    stack: AsyncExitStack, config: VerifierConfig, wrapper: AuditorWrapper | None = None
) -> Verifier:
    opened = open_verifier(config, VerifierMetrics(), Health(60), get_logger("test"), wrapper)
    verifier, _ = await stack.enter_async_context(opened)
    stack.push_async_callback(verifier.cancel_audits)
    return verifier


async def drive(network: Network, running: Sequence[Verifier], done: Callable[[], Awaitable[bool]]) -> None:
    """Tick the verifiers, with a block between the rounds, until `done`."""
    deadline = time.monotonic() + 60
    while not await done():
        assert time.monotonic() < deadline, "the verifiers did not get there"
        for verifier in running:
            await verifier.tick()
        for verifier in running:
            await asyncio.wait_for(verifier.wait_audits(), 60)
        await network.clock.mine()


async def committed(network: Network, epoch: int, indexes: Sequence[int] = VERIFIERS) -> bool:
    committee = network.admin.contracts.verifier_committee
    return all([any(await committee.commitment_of(epoch, network.chain_address(index))) for index in indexes])


async def revealed(network: Network, epoch: int, indexes: Sequence[int] = VERIFIERS) -> bool:
    committee = network.admin.contracts.verifier_committee
    return all([await committee.has_revealed(epoch, network.chain_address(index)) for index in indexes])


async def judged(network: Network, epoch: int, indexes: Sequence[int] = VERIFIERS) -> bool:
    events = await network.admin.history("VerifierCommittee", "VerifierJudged")
    seen = {event.args["verifier"] for event in events if event.args["epoch"] == epoch}
    return all(network.chain_address(index) in seen for index in indexes)


async def judge_epoch(network: Network, running: Sequence[Verifier], epoch: int) -> None:
    """Take the work of `epoch` from seed to judgement."""
    await network.clock.skip_to_phase(epoch + 1, 0, 0.02)
    await drive(network, running, lambda: committed(network, epoch))
    await network.clock.skip_to_phase(epoch + 1, 1)
    await drive(network, running, lambda: revealed(network, epoch))
    await network.clock.skip_to_phase(epoch + 1, 2)
    await drive(network, running, lambda: judged(network, epoch))
