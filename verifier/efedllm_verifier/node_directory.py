"""What the chain says about nodes: where each answers, which keys it has had, and the shard it served."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from efedllm.chain.client import Chain
from efedllm.chain.types import BatchInfo, ModelInfo
from efedllm_verifier.fetch import base_url
from efedllm_verifier.leaf import Registration


@dataclass(frozen=True)
class Party:
    """A node of a route: the endpoint it registered ("" when unknown), and every key that may have signed for it."""

    endpoint: str
    signers: frozenset[str]


@dataclass(frozen=True)
class NodeDirectory:
    """Every registered node as of one look at the chain.

    A node's signers are all keys it ever registered. Which key was in force when a job ran is not checked: otherwise a
    neighbour that changes its key between the job and the batch could make an honest node's input look unsigned.
    """

    parties: Mapping[str, Party]

    @classmethod
    async def read(cls, chain: Chain) -> Self:
        """The directory as of now. Raises ChainError."""
        endpoints: dict[str, str] = {}
        signers: dict[str, set[str]] = {}
        for event in await chain.history("NodeRegistry", "NodeRegistered", "NodeUpdated", "EndpointUpdated"):
            node = event.args["node"]
            if "endpoint" in event.args:
                endpoints[node] = event.args["endpoint"]
            if "signer" in event.args:
                signers.setdefault(node, set()).add(event.args["signer"])
        return cls({node: Party(endpoints.get(node, ""), frozenset(keys)) for node, keys in signers.items()})

    def party(self, node: str) -> Party:
        """A node by its registration, whatever a leaf says of it; one that never registered has no endpoint or key."""
        return self.parties.get(node, Party("", frozenset()))

    @property
    def model_urls(self) -> list[str]:
        """Where nodes serve model files. Nodes of other models are told apart by their manifest."""
        bases = [base_url(party.endpoint) for party in self.parties.values()]
        return [f"{base}/v1/model" for base in bases if base is not None]


async def read_registration(chain: Chain, nodes: NodeDirectory, batch: BatchInfo) -> tuple[Registration, ModelInfo]:
    """The registration of the batch's node in the block of the batch, and its model. Raises ChainError."""
    view = await chain.contracts.node_registry.node_of(batch.node, block=batch.block)
    model = await chain.model(view.model_id)
    registration = Registration(
        node=batch.node,
        signers=nodes.party(batch.node).signers,
        model_id=view.model_id,
        lo=view.lo,
        hi=view.hi,
        shard_root=view.shard_root,
        layers=model.layers,
        hidden=model.hidden,
        profile=model.profile,
    )
    return registration, model
