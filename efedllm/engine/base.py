"""What every engine is: a range of a model, and the checks of what it is asked to run. numpy only."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from efedllm.engine.protocol import Int32, Sequence, StepItem
from efedllm.errors import ModelError
from efedllm.models.families import head_dim, is_tied
from efedllm.models.manifest import Manifest

if TYPE_CHECKING:
    from efedllm.engine.memory.layer_streaming import TierReport

Array = npt.NDArray[Any]
_SequenceKind = TypeVar("_SequenceKind", bound=Sequence)


@dataclass(frozen=True)
class EngineShape:
    lo: int
    hi: int
    layers: int
    hidden: int
    vocab: int
    max_positions: int
    heads: int
    kv_heads: int
    head_dim: int


def engine_shape(model_dir: Path, manifest: Manifest, config: Any, lo: int, hi: int) -> EngineShape:
    """The shape of layers [lo, hi). Raises ModelError "bad-manifest" when manifest and config.json disagree."""
    said = (manifest.layers, manifest.hidden, manifest.vocab, manifest.tied)
    if said != (config.num_hidden_layers, config.hidden_size, config.vocab_size, is_tied(config)):
        raise other_model(model_dir)
    heads = int(config.num_attention_heads)
    return EngineShape(
        lo=lo,
        hi=hi,
        layers=manifest.layers,
        hidden=manifest.hidden,
        vocab=manifest.vocab,
        max_positions=int(config.max_position_embeddings),
        heads=heads,
        kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        head_dim=head_dim(config),
    )


def other_model(model_dir: Path) -> ModelError:
    """The error of a published model whose config.json is not that of its manifest."""
    return ModelError(
        "bad-manifest",
        f"The manifest and config.json of {model_dir.name} describe different models.",
        "Fetch the model again from its publisher.",
    )


def packed_positions(sequences: SequenceOf[Sequence], counts: SequenceOf[int]) -> npt.NDArray[np.int64]:
    """Position of every token of a packed batch: counts[i] new ones after the length of sequences[i]."""
    return np.concatenate(
        [np.arange(s.length, s.length + n, dtype=np.int64) for s, n in zip(sequences, counts, strict=True)]
    )


class RangeEngine:
    """The part of an Executor (see `protocol`) that does not depend on its arithmetic."""

    def __init__(self, shape: EngineShape) -> None:
        self._shape = shape

    @property
    def lo(self) -> int:
        return self._shape.lo

    @property
    def hi(self) -> int:
        return self._shape.hi

    @property
    def layers(self) -> int:
        return self._shape.layers

    @property
    def hidden(self) -> int:
        return self._shape.hidden

    @property
    def vocab(self) -> int:
        return self._shape.vocab

    @property
    def max_positions(self) -> int:
        return self._shape.max_positions

    @property
    def has_embedding(self) -> bool:
        return self._shape.lo == 0

    @property
    def has_head(self) -> bool:
        return self._shape.hi == self._shape.layers

    @property
    def whole_texts(self) -> bool:
        return False

    @property
    def tiers(self) -> TierReport | None:
        """How the layers lie in memory; None without a budget."""
        return None

    def _check(self, batch: SequenceOf[StepItem], kind: type[_SequenceKind]) -> tuple[_SequenceKind, ...]:
        """The sequences of a batch. Raises ModelError "bad-input" or "context-exceeded"."""
        sequences: list[_SequenceKind] = []
        for item in batch:
            sequence = item.sequence
            if not isinstance(sequence, kind) or any(sequence is other for other in sequences):
                raise bad_input("each item needs a sequence of this engine, once per batch")
            if self.has_embedding:
                self._check_ids(item.inputs)
            else:
                self._check_states(item.inputs)
            if sequence.length + len(item.inputs) > self.max_positions:
                raise ModelError(
                    "context-exceeded",
                    f"The sequence would reach {sequence.length + len(item.inputs)} positions; "
                    f"this model has {self.max_positions}.",
                    "Use a shorter prompt or ask for fewer tokens.",
                )
            sequences.append(sequence)
        return tuple(sequences)

    def _check_embed(self, ids: Int32, positions: Int32 | None) -> npt.NDArray[np.int64]:
        """The positions to embed `ids` at. Raises ModelError "no-embedding" or "bad-input"."""
        if not self.has_embedding:
            raise ModelError(
                "no-embedding", f"Layers {self.lo}:{self.hi} do not include the embedding.", "Use layers from 0."
            )
        self._check_ids(ids)
        where = np.arange(len(ids)) if positions is None else positions
        if where.shape != ids.shape or len(where) == 0 or where.min() < 0 or where.max() >= self.max_positions:
            raise bad_input(f"positions must be {len(ids)} integers below {self.max_positions}")
        return where.astype(np.int64)

    def _check_ids(self, ids: Array) -> None:
        if ids.ndim != 1 or len(ids) == 0 or ids.dtype != np.int32:
            raise bad_input(f"expected int32 [n] token ids, n >= 1, not {ids.dtype}{list(ids.shape)}")
        if int(ids.min()) < 0 or int(ids.max()) >= self.vocab:
            raise bad_input(f"token ids must lie in 0..{self.vocab - 1}")

    def _check_states(self, states: Array) -> None:
        if states.ndim != 2 or len(states) == 0 or states.shape[1] != self.hidden or states.dtype != np.float32:
            raise bad_input(
                f"expected float32 [n, {self.hidden}] states, n >= 1, not {states.dtype}{list(states.shape)}"
            )

    def _no_head(self) -> ModelError:
        return ModelError(
            "no-head", f"Layers {self.lo}:{self.hi} do not include the head.", "Ask the node of the last layers."
        )


def bad_input(what: str) -> ModelError:
    return ModelError("bad-input", f"The engine cannot run this batch: {what}.", "Check the model and layer range.")
