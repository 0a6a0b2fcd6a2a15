"""Putting the contracts on a chain: once, in order, resumable after any failure."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eth_utils.address import to_checksum_address

from efedllm.chain.amounts import format_amount
from efedllm.chain.artifacts import CONTRACTS, artifact, fingerprint
from efedllm.chain.codec import Codec
from efedllm.chain.connection import LOCAL_CHAIN_IDS, Rpc
from efedllm.chain.deployment import DeployedContract, Deployment
from efedllm.chain.sender import Sender
from efedllm.errors import ChainError, ConfigError
from efedllm_deploy.plan import ADMINISTERED, DEFAULT_ADMIN_ROLE, code_matches, constructor_args, grants
from efedllm_deploy.profile import Profile
from efedllm_deploy.statefiles import DeployState, StateFiles

if TYPE_CHECKING:
    from eth_account.signers.local import LocalAccount

# Measured for all contracts, the roles and handing them over, rounded up.
_TOTAL_GAS = 27_000_000


@dataclass(frozen=True)
class DeployStep:
    """One thing done, or found done: `tx` and `gas` are empty when nothing had to be sent."""

    name: str
    detail: str
    tx: str = ""
    gas: int = 0

    @property
    def skipped(self) -> bool:
        """It was on chain already."""
        return not self.tx


@dataclass(frozen=True)
class Deployed:
    """The result: the deployment, the file it was written to, and the steps."""

    deployment: Deployment
    path: Path
    steps: list[DeployStep] = field(default_factory=list)

    @property
    def gas(self) -> int:
        """Gas this run used."""
        return sum(step.gas for step in self.steps)


class Deployer:
    """Deploys one profile with one account; what is done is recorded in `out` (see StateFiles)."""

    def __init__(
        self,
        rpc: Rpc,
        account: LocalAccount,
        profile: Profile,
        out: Path,
        *,
        admin: str | None = None,
        treasury: str | None = None,
        on_step: Callable[[DeployStep], None] | None = None,
    ) -> None:
        self._rpc = rpc
        self._account = account
        self._address = str(account.address)
        self._profile = profile
        self._out = out
        self._admin = to_checksum_address(admin) if admin else None
        self._treasury = to_checksum_address(treasury) if treasury else self._address
        self._on_step = on_step
        self._steps: list[DeployStep] = []
        self._sender: Sender | None = None

    async def run(self, expected_chain_id: int | None = None) -> Deployed:
        """Deploy what is missing, verify what is there. Raises ChainError or ConfigError; run again to resume."""
        chain_id = await self._rpc.integer("eth_chainId")
        self._check_chain(chain_id, expected_chain_id)
        files = StateFiles(self._out, chain_id)
        self._sender = Sender(self._rpc, self._account, chain_id, journal=files.journal(self._address))
        deployment = await self._existing(files)
        if deployment is None:
            await self._check_balance()
            state = await self._deploy_all(await self._load_state(files, chain_id), files)
            deployment = self._finished(state)
        await self._grant_roles({name: item.address for name, item in deployment.contracts.items()})
        files.finish(deployment)
        return Deployed(deployment, files.final, self._steps)

    def _check_chain(self, chain_id: int, expected: int | None) -> None:
        if expected is not None and expected != chain_id:
            raise ChainError(
                "wrong-chain",
                f"{self._rpc.url} is chain {chain_id}, not {expected}.",
                "Pass the --rpc of the chain you mean, or another --chain-id.",
            )
        if self._profile.chain_ids and chain_id not in self._profile.chain_ids:
            raise ChainError(
                "wrong-chain",
                f"The profile {self._profile.name} is not for chain {chain_id}.",
                "Use --profile testnet or --profile production.",
            )

    async def _existing(self, files: StateFiles) -> Deployment | None:
        """The deployment of an earlier run, verified; None when there is none on this chain."""
        deployment = files.deployment()
        if deployment is None:
            return None
        contracts = {name: deployment.contracts[name] for name in CONTRACTS if name in deployment.contracts}
        codes = await self._codes([item.address for item in contracts.values()])
        if not any(codes):
            if deployment.chain_id in LOCAL_CHAIN_IDS:
                # A development chain that was started afresh; the file is about one that is gone.
                files.set_aside(deployment)
                return None
            raise ChainError(
                "no-contract",
                f"{files.final} names contracts that are not on this chain.",
                "Check --rpc, or use another --out folder.",
            )
        if deployment.params != self._profile.params():
            raise ConfigError(
                "deployment-differs",
                f"{files.final} was deployed with other parameters than the profile {self._profile.name}.",
                f"Use --profile {deployment.profile}, or another --out folder for a second network.",
            )
        for (name, item), code in zip(contracts.items(), codes, strict=True):
            self._verify(name, item, code)
            self._report(DeployStep(name, item.address))
        return deployment

    async def _codes(self, addresses: list[str]) -> list[bytes]:
        answers = await asyncio.gather(
            *(self._rpc.request("eth_getCode", [address, "latest"]) for address in addresses)
        )
        return [bytes.fromhex(answer.removeprefix("0x")) if len(answer) > 3 else b"" for answer in answers]

    @staticmethod
    def _verify(name: str, item: DeployedContract, code: bytes) -> None:
        if not code_matches(artifact(name), code):
            raise ChainError(
                "code-mismatch",
                f"The code of {name} at {item.address} is not what this version compiles to.",
                "Use the version that deployed it, or another --out folder for a new network.",
            )

    async def _load_state(self, files: StateFiles, chain_id: int) -> DeployState:
        """The state of an interrupted run when it fits, else a new one."""
        state = files.state()
        if state is not None:
            codes = await self._codes([item.address for item in state.contracts.values()])
            same = (state.code, state.profile, state.chain_id) == (fingerprint(), self._profile.fingerprint(), chain_id)
            if same and state.deployer == self._address and all(codes):
                self._treasury = state.treasury
                return state
            if any(codes):
                raise ConfigError(
                    "state-differs",
                    f"{files.partial} is of an unfinished deployment with another account, profile or version.",
                    "Finish that one with its own settings, or delete the file to start afresh.",
                )
        block = await self._rpc.request("eth_getBlockByNumber", ["latest", False])
        return DeployState(
            chain_id=chain_id,
            code=fingerprint(),
            profile=self._profile.fingerprint(),
            genesis=int(block["timestamp"], 16),
            deployer=self._address,
            treasury=self._treasury,
        )

    async def _check_balance(self) -> None:
        balance, price = await asyncio.gather(
            self._rpc.integer("eth_getBalance", [self._address, "latest"]), self._rpc.integer("eth_gasPrice")
        )
        if balance < _TOTAL_GAS * price:
            raise ChainError(
                "insufficient-funds",
                f"{self._address} has {format_amount(balance, 'ETH')}; deploying may need "
                f"{format_amount(_TOTAL_GAS * price, 'ETH')} for gas.",
                "Send ETH to this address first.",
            )

    async def _deploy_all(self, state: DeployState, files: StateFiles) -> DeployState:
        files.save_state(state)
        for name in CONTRACTS:
            if name in state.contracts:
                self._report(DeployStep(name, state.contracts[name].address))
                continue
            compiled = artifact(name)
            args = constructor_args(name, self._profile, state.genesis, self._address, state.treasury, state.addresses)
            data = bytes.fromhex(compiled.bytecode.removeprefix("0x"))
            receipt = await self._transact(None, data + Codec(name, compiled.abi).encode_constructor(args), name)
            item = DeployedContract(
                address=to_checksum_address(receipt["contractAddress"]),
                abi_sha256=compiled.abi_sha256,
                block=int(receipt["blockNumber"], 16),
                tx=receipt["transactionHash"],
            )
            state = state.model_copy(update={"contracts": {**state.contracts, name: item}})
            files.save_state(state)
            self._report(DeployStep(name, item.address, receipt["transactionHash"], int(receipt["gasUsed"], 16)))
        return state

    def _finished(self, state: DeployState) -> Deployment:
        return Deployment(
            chain_id=state.chain_id,
            genesis=state.genesis,
            epoch_length=self._profile.clock.epoch_length,
            block=min(item.block for item in state.contracts.values()),
            deployer=self._address,
            contracts=state.contracts,
            compiler=artifact(CONTRACTS[0]).compiler,
            profile=self._profile.name,
            params=self._profile.params(),
        )

    async def _grant_roles(self, addresses: dict[str, str]) -> None:
        for grant in grants(addresses):
            await self._grant(addresses, grant.contract, grant.role, grant.role_name, grant.holder)
        if self._admin is None or self._admin == self._address:
            return
        for contract in ADMINISTERED:
            await self._grant(addresses, contract, DEFAULT_ADMIN_ROLE, "ADMIN", self._admin)
            if await self._has_role(addresses, contract, DEFAULT_ADMIN_ROLE, self._address):
                data = Codec(contract, artifact(contract).abi).encode_call(
                    "renounceRole", [DEFAULT_ADMIN_ROLE, self._address]
                )
                receipt = await self._transact(addresses[contract], data, f"{contract}.renounceRole")
                self._report(
                    DeployStep(
                        f"{contract}: deployer gives up ADMIN",
                        self._address,
                        receipt["transactionHash"],
                        int(receipt["gasUsed"], 16),
                    )
                )

    async def _has_role(self, addresses: dict[str, str], contract: str, role: bytes, holder: str) -> bool:
        codec = Codec(contract, artifact(contract).abi)
        data = "0x" + codec.encode_call("hasRole", [role, holder]).hex()
        answer = await self._rpc.request("eth_call", [{"to": addresses[contract], "data": data}, "latest"])
        return bool(codec.decode_result("hasRole", 2, bytes.fromhex(answer[2:])))

    async def _grant(self, addresses: dict[str, str], contract: str, role: bytes, role_name: str, holder: str) -> None:
        title = f"{contract}: {role_name}"
        if await self._has_role(addresses, contract, role, holder):
            self._report(DeployStep(title, holder))
            return
        data = Codec(contract, artifact(contract).abi).encode_call("grantRole", [role, holder])
        receipt = await self._transact(addresses[contract], data, f"{contract}.grantRole")
        self._report(DeployStep(title, holder, receipt["transactionHash"], int(receipt["gasUsed"], 16)))

    async def _transact(self, to: str | None, data: bytes, what: str) -> dict[str, Any]:
        if self._sender is None:
            raise ChainError("no-account", "Deploying needs an account.")
        return await self._sender.transact(to, data, 0, what)

    def _report(self, step: DeployStep) -> None:
        self._steps.append(step)
        if self._on_step is not None:
            self._on_step(step)


async def deploy_contracts(
    rpc_url: str,
    account: LocalAccount,
    profile: Profile,
    out: Path,
    *,
    expected_chain_id: int | None = None,
    admin: str | None = None,
    treasury: str | None = None,
    on_step: Callable[[DeployStep], None] | None = None,
    budget: float = 30.0,
) -> Deployed:
    """Deploy or verify a network; see Deployer. `budget`: seconds an RPC outage is waited out."""
    rpc = Rpc(rpc_url, budget=budget)
    try:
        deployer = Deployer(rpc, account, profile, out, admin=admin, treasury=treasury, on_step=on_step)
        return await deployer.run(expected_chain_id)
    finally:
        await rpc.close()
