"""Reads that need several calls or the event log: models, nodes, sessions, verifiers, batches."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from eth_utils.address import to_checksum_address

from efedllm.chain.calls import BlockTag
from efedllm.chain.contracts import Contracts
from efedllm.chain.index import Histories
from efedllm.chain.reverts import RevertError
from efedllm.chain.transport import LOG_CHUNK, Transport
from efedllm.chain.types import BatchInfo, ChainEvent, ModelInfo, NodeInfo, SessionInfo, VerifierInfo
from efedllm.errors import ChainError

Result = TypeVar("Result")


class Readers:
    """Combined reads of one network. `histories` is the folder in which events are kept for the next process."""

    def __init__(self, transport: Transport, histories: Path | None = None) -> None:
        self.transport = transport
        self.contracts = Contracts(transport)
        self.histories = Histories(transport, histories)

    async def history(self, contract: str, *names: str) -> list[ChainEvent]:
        """All events of a contract since the deployment, or those called `names`. Only new blocks are read."""
        return await self.histories.events(contract, *names)

    # --- models ---

    async def models(self) -> list[ModelInfo]:
        """Every registered model, oldest first."""
        registered = await self.history("ModelRegistry", "ModelRegistered")
        return list(await asyncio.gather(*(self._model(event) for event in registered)))

    async def model(self, model_id: bytes) -> ModelInfo:
        """One model. Raises ChainError "unknown-model"."""
        for event in await self.history("ModelRegistry", "ModelRegistered"):
            if event.args["modelId"] == model_id:
                return await self._model(event)
        raise ChainError(
            "unknown-model",
            f"No model 0x{model_id.hex()} is registered on this chain.",
            "Check --model-id, or publish it with `efedllm model publish`.",
        )

    async def _model(self, event: ChainEvent) -> ModelInfo:
        args = event.args
        model = await self.contracts.model_registry.model_of(args["modelId"])
        return ModelInfo(
            model_id=args["modelId"],
            owner=model.owner,
            weights_root=model.weights_root,
            manifest_hash=args["manifestHash"],
            layers=model.layers,
            hidden=model.hidden,
            rank_bps=model.rank_bps,
            quant=model.quant,
            profile=model.profile,
            status=model.status,
            uri=args["uri"],
            block=event.block,
            constants_hash=model.constants_hash,
            certificate_hash=args["certificateHash"],
        )

    # --- nodes ---

    async def nodes(self, model_id: bytes | None = None) -> list[NodeInfo]:
        """Every node that ever registered, or those registered for one model now, in order of first registration."""
        endpoints = await self._endpoints()
        infos = await asyncio.gather(*(self._node(address, endpoint) for address, endpoint in endpoints.items()))
        return [info for info in infos if model_id is None or info.model_id == model_id]

    async def node(self, address: str) -> NodeInfo:
        """One node; status 0 and an empty endpoint when it never registered."""
        address = to_checksum_address(address)
        return await self._node(address, (await self._endpoints()).get(address, ""))

    async def _endpoints(self) -> dict[str, str]:
        endpoints: dict[str, str] = {}
        for event in await self.history("NodeRegistry", "NodeRegistered", "EndpointUpdated"):
            endpoints[event.args["node"]] = event.args["endpoint"]
        return endpoints

    async def _node(self, address: str, endpoint: str) -> NodeInfo:
        committee = self.contracts.verifier_committee
        (view, stake, owed), (state, trust, standing) = await asyncio.gather(
            asyncio.gather(
                self.contracts.node_registry.node_of(address),
                self.contracts.stake_vault.stake_of(address),
                self.contracts.session_escrow.owed_of(address),
            ),
            asyncio.gather(
                committee.trust_state(address),
                committee.trust_of(address),
                committee.standing_of(address),
            ),
        )
        return NodeInfo(
            address=address,
            signer=view.signer,
            lo=view.lo,
            hi=view.hi,
            price_per_ktok=view.price_per_ktok,
            status=view.status,
            model_id=view.model_id,
            shard_root=view.shard_root,
            endpoint=endpoint,
            stake_active=stake.active,
            stake_unbonding=stake.unbonding,
            trust_ppm=trust,
            standing=standing,
            jailed_until=state.jailed_until,
            offences=state.offences,
            owed=owed,
        )

    # --- sessions, verifiers, batches ---

    async def session(self, session_id: bytes) -> SessionInfo:
        """One escrow session; status 0 when it was never opened."""
        return await self.session_at(session_id, "latest")

    async def session_at(self, session_id: bytes, block: BlockTag) -> SessionInfo:
        """A session as of a block."""
        view = await self.contracts.session_escrow.session_of(session_id, block=block)
        return SessionInfo(
            session_id, view.deposit, view.settled, view.closes_at, view.fee_bps, view.status, view.contract_signer
        )

    async def opened_after(self, session_id: bytes, block: int) -> bool:
        """Whether a session was opened after `block`. The newest blocks are searched first."""
        end = await self.transport.block_number()
        while end > block:
            start = max(block + 1, end - LOG_CHUNK + 1)
            if await self.transport.events(
                "SessionEscrow", "SessionOpened", from_block=start, to_block=end, indexed=(session_id,)
            ):
                return True
            end = start - 1
        return False

    async def verifiers(self) -> list[VerifierInfo]:
        """Verifiers that hold a seat now or will from the next epoch on, in order of taking it."""
        seated: dict[str, None] = {}
        for event in await self.history("SeatRegistry", "SeatTaken", "SeatLeft"):
            if event.name == "SeatTaken":
                seated[event.args["verifier"]] = None
            else:
                seated.pop(event.args["verifier"], None)
        active = set(await self.contracts.seat_registry.seats_of((await self.transport.now()).epoch))
        addresses = list(seated) + [address for address in active if address not in seated]
        stakes = await asyncio.gather(*(self.contracts.stake_vault.stake_of(address) for address in addresses))
        return [
            VerifierInfo(address, stake.active, address in active)
            for address, stake in zip(addresses, stakes, strict=True)
        ]

    async def batches(self, epoch: int) -> list[BatchInfo]:
        """Batch roots posted for an epoch's work, in chain order."""
        return [
            BatchInfo(
                node=event.args["node"],
                epoch=event.args["epoch"],
                seq=event.args["seq"],
                root=event.args["root"],
                count=event.args["count"],
                block=event.block,
            )
            for event in await self.history("CommitmentLog", "BatchPosted")
            if event.args["epoch"] == epoch
        ]

    async def seed(self, epoch: int) -> bytes | None:
        """The epoch's audit seed, None until it is fixed."""
        seed = await self.contracts.seat_registry.seed_of(epoch)
        return seed if any(seed) else None

    async def read_at(self, block: int, read: Callable[[BlockTag], Awaitable[Result]]) -> Result:
        """`read` as of `block`, or as of the latest block when the server no longer has that state."""
        try:
            return await read(block)
        except RevertError:
            raise
        except ChainError as error:
            if error.code == "rpc-down":
                raise
            return await read("latest")

    async def audit_rate(self, epoch: int, node: str) -> int:
        """Share of the node's leaves to audit, ppm, as of the block that fixed the epoch's seed.

        All verifiers read the same value. Raises ChainError "no-seed" when the seed is not fixed yet.
        """
        fixed = [e for e in await self.history("SeatRegistry", "SeedFixed") if e.args["epoch"] == epoch]
        if not fixed:
            raise ChainError("no-seed", f"The seed of epoch {epoch} is not fixed, or its event not known yet.")
        committee = self.contracts.verifier_committee
        return await self.read_at(fixed[-1].block, lambda tag: committee.audit_rate(node, block=tag))

    async def drawn(self, epoch: int, node: str) -> list[str]:
        """Verifiers drawn to audit a node's epoch."""
        return await self.contracts.seat_registry.drawn(epoch, node)

    async def token_balance(self, address: str, block: BlockTag = "latest") -> int:
        """EFED of an account, wei."""
        return await self.contracts.efed_token.balance_of(address, block=block)
