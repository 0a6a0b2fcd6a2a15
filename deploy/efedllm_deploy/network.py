"""A whole network on one machine: chain, contracts, model, accounts, nodes, verifiers."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self, TypeVar

from efedllm.chain import Chain, Deployment, format_amount, keystore
from efedllm.chain.connection import LOCAL_CHAIN_IDS, Rpc
from efedllm.chain.deployment import write_json
from efedllm.errors import ConfigError
from efedllm.settings import NETWORK_FILE
from efedllm_deploy.accounts import Keys, Purse, fund, replace_slashed
from efedllm_deploy.bundled import ensure_model
from efedllm_deploy.chain_programs import Kind, ensure_program
from efedllm_deploy.deployer import deploy_contracts
from efedllm_deploy.devclock import DevClock, tick
from efedllm_deploy.homefiles import last_chain_port, last_node_ports, lock_home, usable
from efedllm_deploy.layout import NetworkOptions, NodePlacement, placements
from efedllm_deploy.local import LocalChain, dev_account, free_port
from efedllm_deploy.profile import Profile
from efedllm_deploy.publish import PublishedModel, publish
from efedllm_deploy.supervisor import Managed, ProcessSpec, Supervisor

if TYPE_CHECKING:
    from eth_account.signers.local import LocalAccount

Report = Callable[[str], None]
_T = TypeVar("_T")


@dataclass
class Member:
    """A node or verifier of the network. `place` is None for verifiers, `managed` None while it is not running."""

    purse: Purse
    home: Path
    place: NodePlacement | None
    port: int
    managed: Managed | None = None

    @property
    def name(self) -> str:
        """node-0, verifier-1, ..."""
        return self.purse.name

    @property
    def address(self) -> str:
        """Checksum address of its account."""
        return self.purse.address

    @property
    def endpoint(self) -> str:
        """Where a node listens."""
        return f"http://127.0.0.1:{self.port}"


@dataclass
class _Parts:
    """What has been started so far, for stopping in reverse."""

    lock: IO[str] | None = None
    local: LocalChain | None = None
    ticker: asyncio.Task[None] | None = None
    chain: Chain | None = None
    rpc: Rpc | None = None


class LocalNetwork:
    """Async context manager. After start: `chain` (connected as the deployer), `clock`, `nodes`, `verifiers`, `wallet`,
    `model_id`, `rpc_url`, `deployment_path`. Starting again with the same home resumes; stopping leaves no process.
    """

    def __init__(self, options: NetworkOptions, report: Report | None = None) -> None:
        options.check()
        self.options = options
        self.home = options.home
        self.state = "new"
        self.nodes: list[Member] = []
        self.verifiers: list[Member] = []
        self.supervisor = Supervisor(self.home / "logs")
        self.rpc_url = ""
        self.deployment_path = Path()
        self.model_dir = self.home / "model"
        self._report = report or (lambda _text: None)
        self._parts = _Parts()
        self._wallet: Purse | None = None
        self._published: PublishedModel | None = None
        self._clock: DevClock | None = None

    @property
    def chain(self) -> Chain:
        """The connection of the deployer's account."""
        return _started(self._parts.chain)

    @property
    def clock(self) -> DevClock:
        """The chain's clock, to be moved on development chains."""
        return _started(self._clock)

    @property
    def wallet(self) -> Purse:
        """The client's account."""
        return _started(self._wallet)

    @property
    def published(self) -> PublishedModel:
        """The model on chain."""
        return _started(self._published)

    @property
    def model_id(self) -> bytes:
        """Id of the served model."""
        return self.published.model_id

    @property
    def is_local(self) -> bool:
        """The chain is a development chain."""
        return self.chain.chain_id in LOCAL_CHAIN_IDS

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    # --- start ---

    async def start(self) -> None:
        """Start everything. On any failure what was started is stopped again and the error is raised."""
        if self.state != "new":
            raise ConfigError("bad-state", f"The network is {self.state} already.")
        self.state = "starting"
        try:
            self._parts.lock = lock_home(self.home)
            compressing = asyncio.create_task(
                ensure_model(self.options.model, self.model_dir, self.home / "logs" / "compress.log")
            )
            try:
                await self._start_chain()
                account = self._deployer(await _started(self._parts.rpc).integer("eth_chainId"))
                deployment = await self._deploy(account)
                self._report("compressing the model")
                manifest = await compressing
            finally:
                compressing.cancel()
                await asyncio.gather(compressing, return_exceptions=True)
            self._parts.chain = await Chain.connect(
                self.rpc_url, deployment, account, journal=self.home / "deployer.pending.json"
            )
            self._clock = DevClock(self.chain.rpc, deployment.genesis, deployment.epoch_length)
            self._report("publishing the model")
            self._published = await publish(self.chain, self.model_dir)
            self._make_members(manifest.layers)
            self._report("funding accounts")
            purses = [member.purse for member in self.nodes + self.verifiers]
            await fund(self.chain, [self.wallet, *purses])
            if self.is_local:
                # Else a node that cheated in an earlier demo could not start again for want of stake.
                for name in await replace_slashed(self.chain, purses):
                    self._report(f"{name} gets back the stake that was slashed")
            if self.options.processes:
                await self._start_members()
            self._write_network_file()
        except BaseException:
            await self.stop()
            raise
        self.state = "running"

    async def _start_chain(self) -> None:
        chain = self.options.chain
        if chain in ("ganache", "anvil"):
            kind: Kind = "ganache" if chain == "ganache" else "anvil"
            await ensure_program(kind)
            self._report(f"starting {chain}")
            self._parts.local = await LocalChain.start(
                kind,
                log=self.home / "logs" / f"{chain}.log",
                keep=self.home / "chain" / chain,
                port=usable(last_chain_port(self.home)),
            )
            self.rpc_url = self._parts.local.url
        else:
            self.rpc_url = chain
        self._parts.rpc = Rpc(self.rpc_url)
        chain_id = await self._parts.rpc.integer("eth_chainId")
        if self._parts.local is None and chain_id in LOCAL_CHAIN_IDS:
            # Somebody else's development chain mines only on transactions: time would stand still.
            self._parts.ticker = asyncio.create_task(tick(self._parts.rpc))

    def _deployer(self, chain_id: int) -> LocalAccount:
        if self.options.keystore is not None:
            return keystore.load(self.options.keystore, keystore.read_password(self.options.password_file))
        if chain_id in LOCAL_CHAIN_IDS:
            return dev_account()
        raise ConfigError(
            "no-keystore",
            f"Chain {chain_id} is not a local one: an account that pays is needed.",
            "Pass --keystore FILE and --password-file FILE.",
        )

    async def _deploy(self, account: LocalAccount) -> Deployment:
        self._report("deploying the contracts")
        profile = Profile.load(self.options.profile)
        if self.options.epoch_length is not None:
            clock = profile.clock.model_copy(update={"epoch_length": self.options.epoch_length})
            profile = profile.model_copy(update={"clock": clock})
        done = await deploy_contracts(self.rpc_url, account, profile, self.home / "deployments")
        self.deployment_path = done.path
        return done.deployment

    def _make_members(self, layers: int) -> None:
        keys = Keys(self.home / "keys", light=self.is_local)
        options = self.options
        self._wallet = keys.purse("wallet", options.wallet_tokens)
        ports = last_node_ports(self.home)
        for index, place in enumerate(options.layout or placements(layers, options.nodes)):
            name = f"node-{index}"
            purse = keys.purse(name, options.node_stake)
            port = usable(ports.get(name)) or free_port()
            self.nodes.append(Member(purse, self.home / name, place, port))
        for index in range(options.verifiers):
            name = f"verifier-{index}"
            self.verifiers.append(Member(keys.purse(name, options.verifier_stake), self.home / name, None, 0))

    # --- processes ---

    def node_spec(self, member: Member, module: str = "efedllm_node", extra: list[str] | None = None) -> ProcessSpec:
        """The process of a node. `module` may be one that wraps the node's own."""
        place = _started(member.place)
        args = [
            *self._common_args(member),
            *("--model-id", "0x" + self.model_id.hex(), "--layers", f"{place.lo}:{place.hi}"),
            *("--price", str(place.price), "--stake", format_amount(self.options.node_stake, "")),
            *("--listen", f"127.0.0.1:{member.port}", "--endpoint", member.endpoint, *(extra or [])),
        ]
        return ProcessSpec(member.name, module, args)

    def verifier_spec(self, member: Member) -> ProcessSpec:
        """The process of a verifier."""
        own = ["--stake", format_amount(self.options.verifier_stake, ""), "--poll", str(self.options.verifier_poll)]
        return ProcessSpec(member.name, "efedllm_verifier", [*self._common_args(member), *own])

    def _common_args(self, member: Member) -> list[str]:
        return [
            "run",
            *("--rpc", self.rpc_url, "--deployment", str(self.deployment_path)),
            *("--keystore", str(member.purse.path), "--password-file", str(member.purse.password_file)),
            *("--home", str(member.home), "--model", str(self.model_dir)),
        ]

    async def _start_members(self) -> None:
        self._report(f"starting {len(self.nodes)} nodes and {len(self.verifiers)} verifiers")
        specs = [self.node_spec(member) for member in self.nodes] + [
            self.verifier_spec(member) for member in self.verifiers
        ]
        started = await self.supervisor.start_all(specs)
        for member, managed in zip(self.nodes + self.verifiers, started, strict=True):
            member.managed = managed

    async def start_node(self, member: Member, module: str = "efedllm_node", extra: list[str] | None = None) -> None:
        """Start a stopped node again, with the same key and home."""
        member.managed = await self.supervisor.start(self.node_spec(member, module, extra))

    async def stop_member(self, member: Member) -> None:
        """Stop one node or verifier."""
        await self.supervisor.stop(member.name)
        member.managed = None

    # --- files ---

    def describe(self) -> dict[str, Any]:
        """What home/network.json holds: how clients and people reach this network."""
        return {
            "rpc_url": self.rpc_url,
            "chain_id": self.chain.chain_id,
            "deployment": str(self.deployment_path.resolve()),
            "model_id": "0x" + self.model_id.hex(),
            "model_dir": str(self.model_dir.resolve()),
            "wallet": str(self.wallet.path.resolve()),
            "wallet_address": self.wallet.address,
            "password_file": str(self.wallet.password_file.resolve()),
            "pid": os.getpid(),
            "nodes": [
                {
                    "name": member.name,
                    "address": member.address,
                    "endpoint": member.endpoint,
                    "layers": [_started(member.place).lo, _started(member.place).hi],
                    "price_per_ktok": _started(member.place).price,
                    "home": str(member.home.resolve()),
                }
                for member in self.nodes
            ],
            "verifiers": [
                {"name": member.name, "address": member.address, "home": str(member.home.resolve())}
                for member in self.verifiers
            ],
        }

    def _write_network_file(self) -> None:
        write_json(self.home / NETWORK_FILE, self.describe())

    # --- stop ---

    async def stop(self) -> None:
        """Stop processes, then the chain; safe to call twice and after a failed start."""
        if self.state == "stopped":
            return
        self.state = "stopped"
        parts = self._parts
        await self.supervisor.stop_all()
        if parts.ticker is not None:
            parts.ticker.cancel()
            await asyncio.gather(parts.ticker, return_exceptions=True)
        if parts.chain is not None:
            await parts.chain.close()
        if parts.rpc is not None:
            await parts.rpc.close()
        if parts.local is not None:
            await parts.local.stop()
        if parts.lock is not None:
            parts.lock.close()


def _started(value: _T | None) -> _T:
    if value is None:
        raise ConfigError("bad-state", "The network is not started.")
    return value
