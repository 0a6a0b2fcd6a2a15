"""docs/exact.md written down a second time, in numpy and decimals, one row after the other: slow and obvious."""

from __future__ import annotations

import json
from decimal import ROUND_FLOOR, Decimal, localcontext
from pathlib import Path
from typing import Any

import numpy as np

from efedllm.models.manifest import Manifest, TensorInfo
from efedllm.models.packing import PACKED_BITS
from efedllm.models.tensorfile import TensorFile

Row = Any
"""A numpy array; its element type is what each step says."""
LOG2E = float.fromhex("0x1.71547652b82fep+0")
COEFFICIENTS = [
    np.float32(float.fromhex(text))
    for text in (
        "0x1p+0 0x1.62e430p-1 0x1.ebfbe0p-3 0x1.c6b08ep-5 0x1.3b2ab6p-7 0x1.5d87fep-10 0x1.430912p-13".split()  # noqa: SIM905
    )
]


def canonical(x: Row) -> Row:
    y = x.astype(np.float32)
    return np.where(np.abs(y) < np.float32(2.0**-126), np.float32(0), y)


def quantize(x: Row) -> tuple[Row, Any]:
    s = max(np.abs(x).max() / 32639, 2.0**-400)
    return np.rint(x / s).astype(np.int64), s


def exp2(z: Row) -> Row:
    z = np.maximum(z.astype(np.float32), np.float32(-120))
    n = np.rint(z)
    f = z - n
    p = COEFFICIENTS[6] * f
    for k in range(5, 0, -1):
        p = (p + COEFFICIENTS[k]) * f
    return np.ldexp(p + COEFFICIENTS[0], n.astype(np.int32)).astype(np.float32)


def rms_norm(x: Row, weight: Row, eps: float) -> Row:
    d = len(x)
    b = (53 - (d - 1).bit_length()) // 2
    e = int(np.frexp(max(np.abs(x).max(), 2.0**-400))[1]) - 1
    t = np.rint(x * 2.0 ** (b - 1 - e)).astype(np.int64)
    step = 2.0 ** (e + 1 - b)
    v = float((t * t).sum()) * step * step / d
    return x / np.sqrt(v + eps) * weight


def layer_norm(x: Row, weight: Row, bias: Row, eps: float) -> Row:
    d = len(x)
    b = 53 - (d - 1).bit_length()
    e = int(np.frexp(max(np.abs(x).max(), 2.0**-400))[1]) - 1
    total = sum(int(t) for t in np.rint(x * 2.0 ** (b - 1 - e)))
    return rms_norm(x - float(total) * 2.0 ** (e + 1 - b) / d, weight, eps) + bias


def silu(g: Row) -> Row:
    return g * logistic(g)


def gelu(x: Row) -> Row:
    cube = x * x * x * 0.044715
    return x * logistic((cube + x) * float.fromhex("0x1.9884533d43651p+0"))


def logistic(z: Row) -> Row:
    h = exp2((np.abs(z) * -LOG2E).astype(np.float32))
    ratio = np.where(z >= 0, np.float32(1), h) / (h + np.float32(1))
    return ratio.astype(np.float64)


def rows(w: Row, scales: Row, x: Row) -> Row:
    q, s = quantize(x)
    return (w.astype(np.int64) @ q).astype(np.float64) * s * scales.astype(np.float64)


def decimal_cos_sin(angle: Decimal) -> tuple[int, int]:
    """Multiples of 2^-30, halves up, straight from the Taylor series."""
    with localcontext() as context:
        context.prec = 120
        term, cos, sin = Decimal(1), Decimal(0), Decimal(0)
        for k in range(1, 4000):
            if k % 2:
                cos += term if k % 4 == 1 else -term
            else:
                sin += term if k % 4 == 2 else -term
            term = term * angle / k
            if abs(term) < Decimal(10) ** -50:
                break
        up = Decimal("0.5")
        c, s = ((x * 2**30 + up).to_integral_value(ROUND_FLOOR) for x in (cos, sin))
        return int(c), int(s)


class Reference:
    """All layers of a published model, for one sequence from its beginning."""

    def __init__(self, directory: Path) -> None:
        self.config = json.loads((directory / "config.json").read_text())
        self.manifest = Manifest.load(directory)
        self.parts: dict[str, list[Row]] = {}
        self.hidden: dict[int, list[Row]] = {}
        self._unpacked: dict[str, Row] = {}
        for tensor in self.manifest.tensors:
            with TensorFile(directory / tensor.file) as file:
                self.parts[tensor.name] = [self._array(file, name) for name in tensor.parts]
        config = self.config
        self.dim = config.get("head_dim") or self.manifest.hidden // int(
            config.get("num_attention_heads") or config["n_head"]
        )
        if "rope_parameters" in config:
            theta = Decimal(config["rope_parameters"]["rope_theta"])
            with localcontext() as context:
                context.prec = 70
                self.frequencies = [(theta.ln() * (-2 * i) / self.dim).exp() for i in range(self.dim // 2)]

    @staticmethod
    def _array(file: TensorFile, name: str) -> Row:
        slot = file.slot(name)
        kind = {"float32": np.float32, "int8": np.int8, "uint8": np.uint8}[slot.dtype]
        return np.frombuffer(bytes(file.view(name)), dtype=kind).reshape(slot.shape)

    def linear(self, name: str, x: Row) -> Row:
        tensor = self.manifest.tensor(f"{name}.weight")
        parts = self.parts[tensor.name]
        match tensor.form:
            case "dense":
                y = rows(parts[0], parts[1], x)
            case "lowrank":
                y = rows(parts[0], parts[2], rows(parts[1], parts[3], x))
            case "packed":
                y = rows(self._integers(tensor, parts[0], parts[1]), parts[2], x)
                if tensor.rank:
                    y = y + rows(parts[3], np.ones(tensor.rows), rows(parts[4], parts[5], x))
        bias = self.parts.get(f"{name}.bias")
        return y if bias is None else y + bias[0].astype(np.float64)

    def _integers(self, tensor: TensorInfo, data: Row, multipliers: Row) -> Row:
        if tensor.name not in self._unpacked:
            bits = PACKED_BITS[tensor.dtype]
            numbers = [int.from_bytes(row.tobytes(), "little") for row in data]
            w = np.array([[(n >> bits * k) % 2**bits - 2 ** (bits - 1) for k in range(tensor.cols)] for n in numbers])
            self._unpacked[tensor.name] = w * multipliers[:, np.arange(tensor.cols) // tensor.group]
        return self._unpacked[tensor.name]

    def norm(self, name: str, x: Row) -> Row:
        return rms_norm(x, self.parts[f"{name}.weight"][0].astype(np.float64), self.config["rms_norm_eps"])

    def rotate(self, x: Row, position: int) -> Row:
        half = self.dim // 2
        y = np.empty_like(x)
        for i, frequency in enumerate(self.frequencies):
            lc, ls = decimal_cos_sin(frequency * (position % 256))
            hc, hs = decimal_cos_sin(frequency * (position // 256 * 256))
            cos = ((lc * hc - ls * hs + 2**29) >> 30) * 2.0**-30
            sin = ((lc * hs + ls * hc + 2**29) >> 30) * 2.0**-30
            y[i] = x[i] * cos - x[i + half] * sin
            y[i + half] = x[i + half] * cos + x[i] * sin
        return y

    def window(self, layer: int) -> int | None:
        window: int | None = self.config.get("sliding_window")
        if "layer_types" in self.config and self.config["layer_types"][layer] != "sliding_attention":
            return None
        return window

    def run(self, tokens: list[int]) -> tuple[list[Row], list[Row]]:
        """float32 states and logits of every position."""
        table, scale = self.parts["model.embed_tokens.weight"]
        states = [canonical(table[t].astype(np.float32) * scale[t]) for t in tokens]
        for layer in range(self.manifest.layers):
            states = self.layer(layer, states)
        head = "model.embed_tokens" if self.manifest.tied else "lm_head"
        return states, [canonical(self.linear(head, self.norm("model.norm", x.astype(np.float64)))) for x in states]

    def layer(self, layer: int, states: list[Row]) -> list[Row]:
        base = f"model.layers.{layer}"
        keys: list[list[tuple[Row, Any]]] = []
        values: list[list[tuple[Row, Any]]] = []
        out: list[Row] = []
        for position, state in enumerate(states):
            x = state.astype(np.float64)
            y = self.norm(f"{base}.input_layernorm", x)
            q, k, v = (self.linear(f"{base}.self_attn.{n}_proj", y).reshape(-1, self.dim) for n in "qkv")
            if f"{base}.self_attn.q_norm.weight" in self.parts:
                q = np.stack([self.norm(f"{base}.self_attn.q_norm", h) for h in q])
                k = np.stack([self.norm(f"{base}.self_attn.k_norm", h) for h in k])
            keys.append([quantize(self.rotate(h, position)) for h in k])
            values.append([quantize(h) for h in v])
            window = self.window(layer)
            first = 0 if window is None else max(0, position - window + 1)
            groups = len(q) // len(k)
            heads = [
                self.head(
                    quantize(self.rotate(h, position)),
                    [row[i // groups] for row in keys[first:]],
                    [row[i // groups] for row in values[first:]],
                )
                for i, h in enumerate(q)
            ]
            x = canonical(x + self.linear(f"{base}.self_attn.o_proj", np.concatenate(heads))).astype(np.float64)
            y = self.norm(f"{base}.post_attention_layernorm", x)
            hidden = silu(self.linear(f"{base}.mlp.gate_proj", y)) * self.linear(f"{base}.mlp.up_proj", y)
            self.hidden.setdefault(layer, []).append(hidden)
            out.append(canonical(x + self.linear(f"{base}.mlp.down_proj", hidden)))
        return out

    def head(
        self, query: tuple[Row, Any], keys: list[tuple[Row, Any]], values: list[tuple[Row, Any]], divisor: int = 1
    ) -> Row:
        q, sq = query
        factor = sq * ((1 / np.sqrt(float(self.dim)) / divisor) * LOG2E)
        z = np.array([float(int(q @ k)) * sk * factor for k, sk in keys])
        e = exp2((z - z.max()).astype(np.float32))
        denominator = int(np.rint(e * np.float32(2**24)).astype(np.int64).sum())
        w = e.astype(np.float64) * np.array([sv for _, sv in values])
        largest = w.max()
        u = np.rint(w * 2.0**20 / largest).astype(np.int64)
        sums = (u[:, None] * np.stack([v for v, _ in values])).sum(0)
        return sums.astype(np.float64) * (largest * 2.0**4) / denominator


class Gpt2Reference(Reference):
    def run(self, tokens: list[int]) -> tuple[list[Row], list[Row]]:
        (table, scale), (learned,) = self.parts["transformer.wte.weight"], self.parts["transformer.wpe.weight"]
        states = [canonical(table[t].astype(np.float32) * scale[t] + learned[i]) for i, t in enumerate(tokens)]
        for layer in range(self.manifest.layers):
            states = self.layer(layer, states)
        last = [self.norm("transformer.ln_f", x.astype(np.float64)) for x in states]
        return states, [canonical(self.linear("transformer.wte", x)) for x in last]

    def norm(self, name: str, x: Row) -> Row:
        weight, bias = (self.parts[f"{name}.{part}"][0].astype(np.float64) for part in ("weight", "bias"))
        return layer_norm(x, weight, bias, self.config["layer_norm_epsilon"])

    def layer(self, layer: int, states: list[Row]) -> list[Row]:
        base = f"transformer.h.{layer}"
        divisor = layer + 1 if self.config["scale_attn_by_inverse_layer_idx"] else 1
        keys: list[list[tuple[Row, Any]]] = []
        values: list[list[tuple[Row, Any]]] = []
        out: list[Row] = []
        for state in states:
            x = state.astype(np.float64)
            fused = self.linear(f"{base}.attn.c_attn", self.norm(f"{base}.ln_1", x))
            q, k, v = ([quantize(h) for h in part.reshape(-1, self.dim)] for part in np.split(fused, 3))
            keys.append(k)
            values.append(v)
            heads = [
                self.head(h, [row[i] for row in keys], [row[i] for row in values], divisor) for i, h in enumerate(q)
            ]
            x = canonical(x + self.linear(f"{base}.attn.c_proj", np.concatenate(heads))).astype(np.float64)
            hidden = gelu(self.linear(f"{base}.mlp.c_fc", self.norm(f"{base}.ln_2", x)))
            self.hidden.setdefault(layer, []).append(hidden)
            out.append(canonical(x + self.linear(f"{base}.mlp.c_proj", hidden)))
        return out


def reference(directory: Path) -> Reference:
    kind = Manifest.load(directory).model_type
    return Gpt2Reference(directory) if kind == "gpt2" else Reference(directory)
