"""EncoderEngine: a contiguous range of layers of a published encoder, in float32, numpy in and numpy out."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from efedllm.engine.base import EngineShape, RangeEngine, bad_input, engine_shape
from efedllm.engine.load import ShardModules, load_modules
from efedllm.engine.protocol import Float32, Int32, StepItem
from efedllm.errors import ModelError
from efedllm.models.families import read_config
from efedllm.models.skeleton import build_skeleton
from efedllm.models.source import open_published

ATTENTION_NAME = "efedllm_encoder"


@dataclass
class TextSequence:
    """One text in one engine. Every position sees every other, so that nothing is kept but its length."""

    length: int = 0

    @property
    def nbytes(self) -> int:
        return 0

    def truncate(self, length: int) -> None:
        """Forget the whole text: a part of it cannot be kept. Raises ModelError "bad-position" unless `length` is 0
        or the present length."""
        if length not in (0, self.length):
            raise ModelError("bad-position", "An encoder cannot forget a part of a text.", "Encode it again, whole.")
        self.length = length


class EncoderEngine(RangeEngine):
    """Executor (see `protocol`) of an encoder. Thread-confined: load and call it on one thread.

    Each item of a batch is a whole text. There is no head: the states after the last layer are the result.
    """

    def __init__(self, shape: EngineShape, modules: ShardModules) -> None:
        super().__init__(shape)
        self._modules = modules

    @classmethod
    def load(
        cls, model_dir: Path, lo: int, hi: int, *, threads: int = 1, verify_root: bytes | None = None
    ) -> EncoderEngine:
        """Load layers [lo, hi); see `ShardEngine.load`."""
        manifest = open_published(model_dir, verify_root, lo, hi)
        torch.set_num_threads(threads)
        skeleton = build_skeleton(read_config(model_dir), ATTENTION_NAME)
        if not skeleton.family.is_encoder:
            raise ModelError(
                "unsupported-model", f"{model_dir.name} is not an encoder.", "Use an engine for causal models."
            )
        shape = engine_shape(model_dir, manifest, skeleton.config, lo, hi)
        with torch.inference_mode():
            modules = load_modules(model_dir, manifest, skeleton, lo, hi)
        return cls(shape, modules)

    @property
    def has_head(self) -> bool:
        return False

    @property
    def whole_texts(self) -> bool:
        return True

    @property
    def weight_bytes(self) -> int:
        return self._modules.nbytes

    def new_sequence(self) -> TextSequence:
        return TextSequence()

    def step(self, batch: SequenceOf[StepItem]) -> list[Float32]:
        if not batch:
            return []
        texts = self._check(batch, TextSequence)
        if any(text.length for text in texts):
            raise bad_input("an encoder takes a text whole, in one step")
        counts = tuple(len(item.inputs) for item in batch)
        packed = np.concatenate([item.inputs for item in batch])
        with torch.inference_mode():
            where = torch.cat([torch.arange(count) for count in counts])
            states = self._embedded(packed, where) if self.has_embedding else torch.from_numpy(packed)
            states = states.unsqueeze(0)
            for layer in self._modules.layers:
                states = layer(states, attention_mask=None, counts=counts)
            for text, count in zip(texts, counts, strict=True):
                text.length = count
            return [part.numpy() for part in torch.split(states[0], list(counts))]

    def logits(self, hidden: Float32) -> Float32:
        """Raises ModelError "no-head"."""
        del hidden
        raise self._no_head()

    def embed(self, ids: Int32, positions: Int32 | None = None) -> Float32:
        where = self._check_embed(ids, positions)
        with torch.inference_mode():
            return self._embedded(ids, torch.from_numpy(where)).numpy()

    def _embedded(self, ids: npt.NDArray[Any], positions: Tensor) -> Tensor:
        modules = self._modules
        assert modules.embed is not None
        assert modules.positions is not None
        assert modules.segment is not None
        assert modules.embed_norm is not None
        states = modules.embed(torch.from_numpy(ids.astype(np.int64))) + modules.segment
        out: Tensor = modules.embed_norm(states + modules.positions(positions))
        return out


def encoder_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    counts: tuple[int, ...],
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention over all positions of each text.

    query, key, value [1, heads, total, d] -> [1, total, heads, d]; `counts[i]` positions of text i, in packing order.
    """
    del module, attention_mask
    parts = zip(*(torch.split(states, list(counts), dim=2) for states in (query, key, value)), strict=True)
    outputs = [scaled_dot_product_attention(q, k, v, scale=scaling) for q, k, v in parts]
    return torch.cat(outputs, dim=2).transpose(1, 2), None


AttentionInterface.register(ATTENTION_NAME, encoder_attention)
