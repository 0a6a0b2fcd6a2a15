"""The manifest of a published model: which tensors it has, what they hash to, and the Merkle roots nodes stake on.

Needs neither torch nor transformers: clients, the chain tools and the fetcher read it too.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from efedllm.commitments.merkle import WeightsTree
from efedllm.errors import ModelError
from efedllm.models.certificate import Certificate
from efedllm.models.tensors import (
    DTYPE_CODES,
    EMBED_FILE,
    HEAD_FILE,
    LAYER_EMBED,
    LAYER_FILES,
    LAYER_HEAD,
    MAX_LAYERS,
    FileInfo,
    Hash32,
    Sha256,
    Strict,
    TensorDtype,
    TensorForm,
    TensorInfo,
    check_stacks,
    layer_file,
    part_names,
    sorted_leaves,
    tensor_id,
    weight_leaf,
    weights_root,
)
from efedllm.models.tolerance import Tolerance

__all__ = [
    "DTYPE_CODES",
    "EMBED_FILE",
    "ENCODERS",
    "FORMAT_VERSION",
    "HEAD_FILE",
    "LAYER_EMBED",
    "LAYER_FILES",
    "LAYER_HEAD",
    "MANIFEST_NAME",
    "MAX_LAYERS",
    "PROFILE_CODES",
    "QUANT_CODES",
    "FileInfo",
    "Manifest",
    "Method",
    "Profile",
    "Quant",
    "TensorDtype",
    "TensorForm",
    "TensorInfo",
    "layer_file",
    "part_names",
    "tensor_id",
    "weight_leaf",
    "weights_root",
]

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"

# Model types whose result are the states after the last layer; clients, who have no model code, go by it.
ENCODERS = frozenset({"bert"})

QUANT_CODES = {"none": 0, "int8": 1, "packed": 2}
PROFILE_CODES = {"float": 0, "exact": 1}

Quant = Literal["none", "int8", "packed"]
Profile = Literal["float", "exact"]
Method = Literal["truncate", "whiten", "kfac", "int8", "lowrank+int4", "auto"]


def _is_none(value: object) -> bool:
    return value is None


class Manifest(Strict):
    """Everything a reader must know about a published model, and what its bytes must hash to.

    `keep` is the fraction of the parameters of each matrix kept by the low-rank factors (1.0: untouched); `dtype` that
    of the source weights; `quant` is "packed" when any matrix is, else what the method quantised to; `budget` the
    bytes asked for, as a fraction of 16-bit matrices; `calibration` the sha256 of the text used; `heal` the steps of
    distillation against the original.

    `profile` says how the model is computed and audited: "float" within a `tolerance`, "exact" bit for bit (see
    docs/exact.md), in which case `constants` is the sha256 of the constant tables of its arithmetic.
    """

    format_version: Literal[1] = 1
    architecture: str
    model_type: str
    layers: Annotated[int, Field(gt=0, le=MAX_LAYERS)]
    hidden: Annotated[int, Field(gt=0, lt=1 << 16)]
    vocab: Annotated[int, Field(gt=0, lt=1 << 31)]
    tied: bool
    dtype: TensorDtype
    method: Method
    keep: Annotated[float, Field(gt=0.0, le=1.0)]
    quant: Quant
    tensors: tuple[TensorInfo, ...]
    files: tuple[FileInfo, ...]
    weights_root: Hash32
    created_by: str
    # Left out when absent, so that older manifests keep their bytes and hash.
    budget: Annotated[float | None, Field(gt=0.0, le=1.0, exclude_if=_is_none)] = None
    calibration: Annotated[Sha256 | None, Field(exclude_if=_is_none)] = None
    heal: Annotated[int, Field(ge=0, exclude_if=lambda steps: steps == 0)] = 0
    certificate: Annotated[Certificate | None, Field(exclude_if=_is_none)] = None
    profile: Annotated[Profile, Field(exclude_if=lambda profile: profile == "float")] = "float"
    constants: Annotated[Sha256 | None, Field(exclude_if=_is_none)] = None
    tolerance: Annotated[Tolerance | None, Field(exclude_if=_is_none)] = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len({t.name for t in self.tensors}) != len(self.tensors):
            raise ValueError("a tensor is listed twice")
        if len({f.name for f in self.files}) != len(self.files):
            raise ValueError("a file is listed twice")
        check_stacks(self.tensors)
        missing = {t.file for t in self.tensors} - {f.name for f in self.files}
        if missing:
            raise ValueError(f"tensors refer to files that are not listed: {sorted(missing)}")
        absent = set(range(self.layers)) ^ {t.layer for t in self.tensors if t.layer <= MAX_LAYERS}
        if absent:
            raise ValueError(f"layers without tensors, or beyond the last: {sorted(absent)[:5]}")
        if (self.profile == "exact") != (self.constants is not None):
            raise ValueError("an exact model, and no other, names its constants")
        if self.profile == "exact" and self.tolerance is not None:
            raise ValueError("an exact model has no tolerance")
        if self.weights_root != "0x" + weights_root(self.tensors, self.files).hex():
            raise ValueError("weights_root is not the root of the listed tensors")
        return self

    @classmethod
    def parse(cls, data: bytes | str) -> Manifest:
        """Read a manifest. Raises ModelError "bad-manifest"."""
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ModelError(
                "bad-manifest",
                f"The model's manifest is not valid: {where}: {first['msg']}.".replace(": :", ":"),
                "Fetch the model again from its publisher.",
            ) from error

    @classmethod
    def load(cls, directory: Path) -> Manifest:
        """Read `directory/manifest.json`. Raises ModelError "not-published" or "bad-manifest"."""
        path = directory / MANIFEST_NAME
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ModelError(
                "not-published",
                f"{directory} is not a published model: {MANIFEST_NAME} cannot be read.",
                "Make one with `efedllm model compress`.",
            ) from error
        return cls.parse(data)

    def canonical_json(self) -> bytes:
        """The bytes of manifest.json: sorted keys, no spaces, ASCII."""
        document = self.model_dump(mode="json")
        return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()

    def hash(self) -> bytes:
        """sha256 of the canonical JSON; also the sha256 of manifest.json as `compress` writes it."""
        return hashlib.sha256(self.canonical_json()).digest()

    def save(self, directory: Path) -> Path:
        """Write `directory/manifest.json`: whoever reads it meanwhile finds the old one or the new one, whole."""
        path = directory / MANIFEST_NAME
        temporary = directory / f".{MANIFEST_NAME}.{os.getpid()}-{threading.get_ident()}"
        try:
            temporary.write_bytes(self.canonical_json())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        return path

    @property
    def root(self) -> bytes:
        """weights_root as 32 bytes."""
        return bytes.fromhex(self.weights_root[2:])

    @property
    def rank_bps(self) -> int:
        """`keep` in basis points, as registered on chain."""
        return round(self.keep * 10_000)

    @property
    def quant_code(self) -> int:
        """0 none, 1 int8, 2 packed integers, as registered on chain."""
        return QUANT_CODES[self.quant]

    @property
    def profile_code(self) -> int:
        """0 float, 1 exact, as registered on chain and in every HopCommit."""
        return PROFILE_CODES[self.profile]

    @property
    def constants_hash(self) -> bytes:
        """`constants` as 32 bytes, zero for a float model: as registered on chain."""
        return bytes.fromhex(self.constants) if self.constants is not None else bytes(32)

    @property
    def certificate_hash(self) -> bytes:
        """sha256 of the certificate's canonical JSON, zero when there is none: as registered on chain."""
        return self.certificate.hash() if self.certificate is not None else bytes(32)

    def with_profile(self, profile: Profile, constants: bytes | None = None) -> Manifest:
        """The same model under another profile; `constants` (32 bytes) for the exact one. Raises ValidationError."""
        changed = {"profile": profile, "constants": constants.hex() if constants is not None else None}
        kept = self.model_dump(mode="json") | (changed | ({"tolerance": None} if profile == "exact" else {}))
        return Manifest.model_validate_json(json.dumps(kept))

    def matrix_bytes(self) -> tuple[int, int]:
        """(published bytes, bytes in 16 bit) of the matrices of all layers: what a budget is about."""
        matrices = [t for t in self.tensors if t.layer <= MAX_LAYERS and t.cols > 1]
        return sum(t.nbytes for t in matrices), sum(2 * t.rows * t.cols for t in matrices)

    @cached_property
    def _entries(self) -> dict[tuple[int, str], bytes]:
        return dict(sorted_leaves(self.tensors, self.files))

    @cached_property
    def tree(self) -> WeightsTree:
        """The tree under `weights_root`: every leaf, sorted by (layer, name)."""
        return WeightsTree(list(self._entries.values()))

    def tensor(self, name: str) -> TensorInfo:
        """The entry of one tensor. Raises ModelError "no-such-tensor"."""
        for tensor in self.tensors:
            if tensor.name == name:
                return tensor
        raise ModelError("no-such-tensor", f"The model has no tensor named {name}.", "See `efedllm model inspect`.")

    def proof(self, tensor: TensorInfo) -> list[bytes]:
        """Merkle proof of one tensor's leaf, for `ModelRegistry.verifyTensor`."""
        return self.tree.proof(list(self._entries).index((tensor.layer, tensor.name)))

    def check_range(self, lo: int, hi: int) -> None:
        """Raises ModelError "bad-range" unless 0 <= lo < hi <= layers."""
        if not 0 <= lo < hi <= self.layers:
            raise ModelError(
                "bad-range",
                f"Layers {lo}:{hi} are not a range of this model, which has {self.layers} layers.",
                f"Use LO:HI with 0 <= LO < HI <= {self.layers}.",
            )

    def needs_layer(self, layer: int, lo: int, hi: int) -> bool:
        """Whether a node of layers [lo, hi) needs the tensors of `layer` (embed and head included)."""
        if layer == LAYER_EMBED:
            return lo == 0 or (hi == self.layers and self.tied)
        return hi == self.layers if layer == LAYER_HEAD else lo <= layer < hi

    def tensors_for(self, lo: int, hi: int) -> list[TensorInfo]:
        """Tensors a node of layers [lo, hi) holds, sorted by (layer, name)."""
        self.check_range(lo, hi)
        chosen = [t for t in self.tensors if self.needs_layer(t.layer, lo, hi)]
        return sorted(chosen, key=lambda t: (t.layer, t.name))

    def files_for(self, lo: int, hi: int) -> list[str]:
        """Names of the files a node of layers [lo, hi) needs: its weights, and config and tokenizer."""
        wanted = {t.file for t in self.tensors_for(lo, hi)}
        return [f.name for f in self.files if f.is_plain or f.name in wanted]

    def shard_root(self, lo: int, hi: int) -> bytes:
        """Root over the leaves of layers [lo, hi), plus embed if lo == 0, head (and embed if tied) if hi == layers."""
        return WeightsTree([t.leaf for t in self.tensors_for(lo, hi)]).root

    def file(self, name: str) -> FileInfo:
        """The entry of one file. Raises ModelError "no-such-file"."""
        for info in self.files:
            if info.name == name:
                return info
        raise ModelError("no-such-file", f"The model has no file named {name}.", "See `efedllm model inspect`.")
