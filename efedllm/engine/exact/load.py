"""Layers of the exact profile from published safetensors files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from efedllm.engine.base import EngineShape
from efedllm.engine.exact.attention import MAX_POSITIONS
from efedllm.engine.exact.layer import ExactLayer, Norm
from efedllm.engine.exact.linear import Int8Rows, Linears, Published
from efedllm.engine.exact.products import Kernel
from efedllm.engine.load import TensorReader
from efedllm.errors import ModelError
from efedllm.models.families import Skeleton
from efedllm.models.manifest import EMBED_FILE, HEAD_FILE, Manifest, layer_file
from efedllm.models.tensorfile import TensorFile

EXACT_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


@dataclass(frozen=True, eq=False)
class ExactModules:
    """What one engine runs; absent parts are None."""

    layers: tuple[ExactLayer, ...]
    embed: Int8Rows | None
    norm: Norm | None
    head: Linears | None

    @property
    def nbytes(self) -> int:
        """Bytes of weights in memory; a tied embedding and head count once."""
        held = [t for layer in self.layers for t in layer.held]
        if self.embed is not None:
            held += [self.embed.values, self.embed.scales]
        if self.norm is not None:
            held.append(self.norm.weight)
        if self.head is not None:
            held += self.head.held
        return sum({t.data_ptr(): t.nbytes for t in held}.values())


def check_supported(manifest: Manifest, config: Any) -> None:
    """Raises ModelError "unsupported-model" for a model this profile has no arithmetic for."""
    reasons = {
        f"models of type {config.model_type}": config.model_type not in EXACT_FAMILIES,
        f"{manifest.quant} weights (only int8)": manifest.quant != "int8",
        f"{getattr(config, 'hidden_act', None)} activations": getattr(config, "hidden_act", None) != "silu",
        "RMSNorm without epsilon": not getattr(config, "rms_norm_eps", 0) > 0,
        f"more than {MAX_POSITIONS} positions": int(config.max_position_embeddings) > MAX_POSITIONS,
    }
    for reason, applies in reasons.items():
        if applies:
            raise ModelError(
                "unsupported-model",
                f"The exact profile does not run {reason}.",
                f"Publish a {', '.join(EXACT_FAMILIES)} model with `efedllm model compress --quant int8`.",
            )


def load_exact(
    model_dir: Path, manifest: Manifest, skeleton: Skeleton, shape: EngineShape, kernel: Kernel
) -> ExactModules:
    """Load the layers of `shape`, with embeddings at the start and norm and head at the end of the model.

    Raises ModelError "corrupt-weights" when the files and the architecture do not fit together.
    """
    lo, hi = shape.lo, shape.hi
    loader = _Loader(TensorReader(manifest.tensors_for(lo, hi)), skeleton, shape, kernel)
    layers: list[ExactLayer] = []
    for index in range(lo, hi):
        with TensorFile(model_dir / layer_file(index)) as file:
            layers.append(loader.layer(file, index))
    embed: Int8Rows | None = None
    norm: Norm | None = None
    head: Linears | None = None
    family = skeleton.family
    last = hi == shape.layers
    if lo == 0 or (last and skeleton.tied):
        with TensorFile(model_dir / EMBED_FILE) as file:
            module = skeleton.model.get_submodule(family.embed)
            (embed,) = loader.published(file, family.embed, module, dense=True).matrices
    if last:
        with TensorFile(model_dir / HEAD_FILE) as file:
            norm = loader.norm(file, family.norm, shape.hidden)
            if skeleton.tied:
                assert embed is not None
                head = Linears([Published((embed,), None)], kernel)
            else:
                module = skeleton.model.get_submodule(family.head)
                head = Linears([loader.published(file, family.head, module)], kernel)
    loader.reader.check_all_used()
    return ExactModules(tuple(layers), embed if lo == 0 else None, norm, head)


@dataclass(frozen=True)
class _Loader:
    reader: TensorReader
    skeleton: Skeleton
    shape: EngineShape
    kernel: Kernel

    def layer(self, file: TensorFile, index: int) -> ExactLayer:
        module, prefix = self.skeleton.layer(index), self.skeleton.layer_prefix(index)
        attention = module.get_submodule("self_attn")
        shape, config = self.shape, self.skeleton.config

        def linears(parent: str, *names: str) -> Linears:
            paths = [f"{parent}.{name}" for name in names]
            parts = [self.published(file, prefix + path, module.get_submodule(path)) for path in paths]
            return Linears(parts, self.kernel)

        def head_norm(name: str) -> Norm | None:
            path = f"{prefix}self_attn.{name}"
            return self.norm(file, path, shape.head_dim) if hasattr(attention, name) else None

        # Mistral slides in every layer; Qwen says which layers do.
        slides = config if config.model_type == "mistral" else attention
        sliding = getattr(slides, "sliding_window", None)
        return ExactLayer(
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            # IEEE square root and division; a power would be libm's.
            scaling=1.0 / math.sqrt(shape.head_dim),
            window=None if sliding is None else int(sliding),
            attention_norm=self.norm(file, f"{prefix}input_layernorm", shape.hidden),
            qkv=linears("self_attn", "q_proj", "k_proj", "v_proj"),
            query_norm=head_norm("q_norm"),
            key_norm=head_norm("k_norm"),
            out=linears("self_attn", "o_proj"),
            mlp_norm=self.norm(file, f"{prefix}post_attention_layernorm", shape.hidden),
            gate_up=linears("mlp", "gate_proj", "up_proj"),
            down=linears("mlp", "down_proj"),
        )

    def norm(self, file: TensorFile, path: str, size: int) -> Norm:
        weight = self.reader.vector(file, f"{path}.weight", size)
        return Norm(weight.double(), float(self.skeleton.config.rms_norm_eps))

    def published(self, file: TensorFile, path: str, module: nn.Module, *, dense: bool = False) -> Published:
        """The int8 rows of the module named `path`: [weight], or [v, u] unless it has to be `dense`."""
        rows, columns = module.get_parameter("weight").shape
        tensor = self.reader.entry(f"{path}.weight", (rows, columns))
        if tensor.dtype != "int8" or (dense and tensor.form != "dense"):
            raise ModelError(
                "unsupported-model",
                f"{tensor.name} is published as {tensor.form} {tensor.dtype}, which the exact profile does not take.",
                "Publish the model with `efedllm model compress --quant int8`.",
            )
        matrices = _matrices(self.reader.parts(file, tensor))
        has_bias = getattr(module, "bias", None) is not None
        return Published(matrices, self.reader.vector(file, f"{path}.bias", rows) if has_bias else None)


def _matrices(parts: Sequence[Tensor]) -> tuple[Int8Rows, ...]:
    """Published order is weight, scale or u, v, u's scale, v's scale; v is applied first."""
    half = len(parts) // 2
    pairs = [Int8Rows(values, scales) for values, scales in zip(parts[:half], parts[half:], strict=True)]
    return tuple(reversed(pairs))
