"""Typed readers on top of calls and events: models, nodes, sessions, verifiers, batches."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from eth_utils.address import to_checksum_address

from efedllm.chain.eventfile import EventFile
from efedllm.chain.index import EventIndex
from efedllm.chain.reverts import RevertError
from efedllm.chain.types import BatchInfo, ChainEvent, ModelInfo, NodeInfo, SessionInfo, VerifierInfo
from efedllm.errors import ChainError

if TYPE_CHECKING:
    from efedllm.chain.deployment import Deployment
    from efedllm.chain.ledger import Ledger
    from efedllm.chain.types import ChainTime

# eth_getLogs is refused by many servers beyond some ten thousand blocks.
LOG_CHUNK = 5000


class Readers:
    """Reads that need several calls or the event log. `Chain` supplies the transport."""

    deployment: Deployment

    def __init__(self) -> None:
        self._indexes: dict[str, EventIndex] = {}

    async def call(self, contract: str, fn: str, *args: Any, block: int | str = "latest") -> Any:
        """See Chain.call."""
        raise NotImplementedError

    async def events(
        self,
        contract: str,
        *names: str,
        from_block: int | None = None,
        to_block: int | None = None,
        indexed: Sequence[bytes] = (),
    ) -> list[ChainEvent]:
        """See Chain.events."""
        raise NotImplementedError

    async def block_number(self) -> int:
        """See Chain.block_number."""
        raise NotImplementedError

    async def block_hash(self, number: int) -> bytes | None:
        """See Chain.block_hash."""
        raise NotImplementedError

    async def now(self) -> ChainTime:
        """See Chain.now."""
        raise NotImplementedError

    def event_file(self, contract: str) -> EventFile | None:
        """See Chain.event_file."""
        raise NotImplementedError

    def save_histories(self) -> None:
        """Keep what `history` read in the files of `event_file`. Raises OSError."""
        for contract, index in self._indexes.items():
            file = self.event_file(contract)
            if file is not None:
                file.save(index.snapshot)

    async def history(self, contract: str, *names: str) -> list[ChainEvent]:
        """All events of a contract since the deployment (cached; only new blocks are read), filtered by name."""
        if contract not in self._indexes:

            async def fetch(start: int, end: int) -> list[ChainEvent]:
                return await self.events(contract, from_block=start, to_block=end)

            file = self.event_file(contract)
            kept = await asyncio.to_thread(file.load) if file is not None else None
            index = EventIndex(fetch, self.block_number, self.block_hash, self.deployment.block, kept)
            # Somebody may have asked for the same contract meanwhile.
            self._indexes.setdefault(contract, index)
        events = await self._indexes[contract].events()
        return [event for event in events if not names or event.name in names]

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
        model = await self.call("ModelRegistry", "modelOf", args["modelId"])
        return ModelInfo(
            model_id=args["modelId"],
            owner=model.owner,
            weights_root=model.weightsRoot,
            manifest_hash=args["manifestHash"],
            layers=model.layers,
            hidden=model.hidden,
            rank_bps=model.rankBps,
            quant=model.quant,
            profile=model.profile,
            status=model.status,
            uri=args["uri"],
            block=event.block,
            constants_hash=model.constantsHash,
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
        view, stake, state, trust, standing, owed = await asyncio.gather(
            self.call("NodeRegistry", "nodeOf", address),
            self.call("StakeVault", "stakeOf", address),
            self.call("VerifierCommittee", "trustState", address),
            self.call("VerifierCommittee", "trustOf", address),
            self.call("VerifierCommittee", "standingOf", address),
            self.call("SessionEscrow", "owedOf", address),
        )
        _alpha, _beta, _epoch, offences, jailed_until = tuple(state)
        return NodeInfo(
            address=address,
            signer=view.signer,
            lo=view.lo,
            hi=view.hi,
            price_per_ktok=view.pricePerKTok,
            status=view.status,
            model_id=view.modelId,
            shard_root=view.shardRoot,
            endpoint=endpoint,
            stake_active=stake.active,
            stake_unbonding=stake.unbonding,
            trust_ppm=trust,
            standing=standing,
            jailed_until=jailed_until,
            offences=offences,
            owed=owed,
        )

    # --- sessions, verifiers, batches ---

    async def session(self, session_id: bytes) -> SessionInfo:
        """One escrow session; status 0 when it was never opened."""
        return await self.session_at(session_id, "latest")

    async def session_at(self, session_id: bytes, block: int | str) -> SessionInfo:
        """A session as of a block."""
        view = await self.call("SessionEscrow", "sessionOf", session_id, block=block)
        return SessionInfo(
            session_id, view.deposit, view.settled, view.closesAt, view.feeBps, view.status, view.contractSigner
        )

    async def opened_after(self, session_id: bytes, block: int) -> bool:
        """Whether a session was opened in a later block than `block`; looked for from the newest one back."""
        end = await self.block_number()
        while end > block:
            start = max(block + 1, end - LOG_CHUNK + 1)
            if await self.events(
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
        active = set(await self.call("SeatRegistry", "seatsOf", (await self.now()).epoch))
        addresses = list(seated) + [address for address in active if address not in seated]
        stakes = await asyncio.gather(*(self.call("StakeVault", "stakeOf", address) for address in addresses))
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
        seed: bytes = await self.call("SeatRegistry", "seedOf", epoch)
        return seed if any(seed) else None

    async def call_at(self, contract: str, fn: str, *args: Any, block: int) -> Any:
        """A view as of `block`, or of the latest block where the server has forgotten that state."""
        try:
            return await self.call(contract, fn, *args, block=block)
        except RevertError:
            raise
        except ChainError as error:
            if error.code == "rpc-down":
                raise
            return await self.call(contract, fn, *args)

    async def audit_rate(self, epoch: int, node: str) -> int:
        """Share of the node's leaves to audit, ppm, in the block that fixed the epoch's seed: the same for everybody.

        Raises ChainError "no-seed" before that.
        """
        fixed = [e for e in await self.history("SeatRegistry", "SeedFixed") if e.args["epoch"] == epoch]
        if not fixed:
            raise ChainError("no-seed", f"The seed of epoch {epoch} is not fixed, or its event not known yet.")
        return int(await self.call_at("VerifierCommittee", "auditRate", node, block=fixed[-1].block))

    async def drawn(self, epoch: int, node: str) -> list[str]:
        """Verifiers drawn to audit a node's epoch."""
        return list(await self.call("SeatRegistry", "drawn", epoch, node))

    async def token_balance(self, address: str, block: int | str = "latest") -> int:
        """EFED of an account, wei."""
        return int(await self.call("EfedToken", "balanceOf", address, block=block))

    async def ledger(self) -> Ledger:
        """Every EFED accounted for, from the Transfer events: see efedllm.chain.ledger."""
        from efedllm.chain.ledger import read_ledger

        return await read_ledger(self)
