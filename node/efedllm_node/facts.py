"""What a node serves, fixed when it has loaded its layers."""

from __future__ import annotations

from dataclasses import dataclass

from efedllm.commitments.messages import EXACT_PROFILE


@dataclass(frozen=True)
class NodeFacts:
    """What this node serves. `max_positions`: the smaller of the model's and the operator's limit. `encoder`: texts go
    through whole, and no tokens come out. `profile`: as in HopCommit, 0 float, 1 exact, 2 float in bfloat16."""

    address: str
    model_id: bytes
    lo: int
    hi: int
    layers: int
    hidden: int
    vocab: int
    shard_root: bytes
    max_positions: int
    encoder: bool = False
    profile: int = 0

    @property
    def exact(self) -> bool:
        return self.profile == EXACT_PROFILE
