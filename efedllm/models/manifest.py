"""The manifest of a published model: which tensors it has, what they hash to, and the Merkle roots nodes stake on.

Needs neither torch nor transformers: clients, the chain tools and the fetcher read it too.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from efedllm.commitments.hashing import keccak
from efedllm.commitments.merkle import WeightsTree, verify_weights
from efedllm.errors import ModelError
from efedllm.models.certificate import Certificate
from efedllm.models.packing import PACKED_BITS, packed_bytes
from efedllm.models.tolerance import Tolerance

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
EMBED_FILE = "embed.safetensors"
HEAD_FILE = "head.safetensors"

# Model types whose result are the states after the last layer; clients, who have no model code, go by it.
ENCODERS = frozenset({"bert"})

# Pseudo layers: sort after every transformer layer.
LAYER_FILES = 0xFFFD
LAYER_HEAD = 0xFFFE
LAYER_EMBED = 0xFFFF
MAX_LAYERS = LAYER_FILES - 1

DTYPE_CODES = {"": 0, "float32": 1, "bfloat16": 2, "float16": 3, "int8": 4}
DTYPE_CODES |= {"int2": 5, "int3": 6, "int4": 7, "int5": 8, "int6": 9}
QUANT_CODES = {"none": 0, "int8": 1, "packed": 2}
PROFILE_CODES = {"float": 0, "exact": 1}

TensorDtype = Literal["float32", "bfloat16", "float16", "int8", "int2", "int3", "int4", "int5", "int6"]
TensorForm = Literal["dense", "lowrank", "packed"]
Quant = Literal["none", "int8", "packed"]
Profile = Literal["float", "exact"]
Method = Literal["truncate", "whiten", "kfac", "int8", "lowrank+int4", "auto"]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Hash32 = Annotated[str, Field(pattern=r"^0x[0-9a-f]{64}$")]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}$")]
U16 = Annotated[int, Field(ge=0, lt=1 << 16)]
U32 = Annotated[int, Field(ge=0, lt=1 << 32)]


def layer_file(layer: int) -> str:
    """Name of the file that holds transformer layer `layer`."""
    return f"layer-{layer:04d}.safetensors"


def tensor_id(name: str) -> bytes:
    """bytes32 id of a tensor or plain file: keccak256 of its UTF-8 name."""
    return keccak(name.encode())


def weight_leaf(layer: int, name: str, rows: int, cols: int, rank: int, dtype: str, sha256: str) -> bytes:
    """Leaf of one tensor: keccak(keccak(abi.encode(uint16,bytes32,uint32,uint32,uint32,uint8,bytes32))).

    Double hashing is OpenZeppelin's StandardMerkleTree rule: a leaf can never be mistaken for an inner node.
    """
    words = (layer, int.from_bytes(tensor_id(name)), rows, cols, rank, DTYPE_CODES[dtype], int(sha256, 16))
    return keccak(keccak(b"".join(word.to_bytes(32, "big") for word in words)))


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class FileInfo(_Strict):
    """One file of the published directory, other than the manifest itself. `size` in bytes."""

    name: FileName
    size: Annotated[int, Field(ge=0, lt=1 << 48)]
    sha256: Sha256

    @property
    def is_plain(self) -> bool:
        """True for config and tokenizer files, which have a leaf of their own; weight files are covered per tensor."""
        return not self.name.endswith(".safetensors")


class TensorInfo(_Strict):
    """One logical tensor. A matrix is [rows, cols] = [out, in]; a vector has cols 1 and form "dense".

    `sha256` is over the canonical bytes of `parts` in order (little endian, row-major): dense `[name]`, low rank
    `[name.u, name.v]` with u [rows, rank] and v [rank, cols]; int8 adds float32 scales, one per row of each int8 part.

    `stack` names the tensor whose v this one uses, in the same file: matrices that read the same input can share it,
    and the one named is among them. The hash covers v in each of them, so the leaf is that of a tensor with its own v.

    packed: W = (q * m) * scale + u diag(s) v with q of 2 to 6 bits as `packing` lays them out, multipliers m int8
    [rows, ceil(cols / group)], scale float32 [rows], u and v int8, s float32 [rank]; parts
    `[name.q, name.q.mult, name.q.scale]`, and `[name.u, name.v, name.uv.scale]` when rank > 0. The leaf fixes `group`
    too: another has another number of bytes.
    """

    name: Annotated[str, Field(min_length=1, max_length=300)]
    layer: U16
    tensor_id: Hash32
    form: TensorForm
    rows: Annotated[int, Field(gt=0, lt=1 << 32)]
    cols: Annotated[int, Field(gt=0, lt=1 << 32)]
    rank: U32
    # Left out when 0, so that manifests without packed tensors keep the bytes and the hash they always had.
    group: Annotated[int, Field(ge=0, lt=1 << 16, exclude_if=lambda group: group == 0)] = 0
    stack: Annotated[str, Field(max_length=300, exclude_if=lambda stack: stack == "")] = ""
    dtype: TensorDtype
    parts: tuple[str, ...]
    file: FileName
    sha256: Sha256

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.tensor_id != "0x" + tensor_id(self.name).hex():
            raise ValueError(f"tensor_id of {self.name} is not the hash of its name")
        packed = self.form == "packed"
        if packed != (self.dtype in PACKED_BITS) or packed != (self.group > 0) or self.group > 1 << 14:
            raise ValueError(f"dtype and group of {self.name} do not fit its form")
        if self.parts != part_names(self.name, self.form, self.dtype, self.rank, self.stack):
            raise ValueError(f"parts of {self.name} do not fit its form")
        # A shared v may have more rows than one of the matrices that use it.
        most = self.cols if self.stack else min(self.rows, self.cols)
        if (not packed and (self.form == "lowrank") != (self.rank > 0)) or self.rank > most:
            raise ValueError(f"rank of {self.name} does not fit its form")
        if self.stack and self.form != "lowrank":
            raise ValueError(f"{self.name} shares a factor that its form does not have")
        if self.file != _file_of_layer(self.layer):
            raise ValueError(f"{self.name} is in {self.file}, not in the file of its layer")
        return self

    @property
    def leaf(self) -> bytes:
        return weight_leaf(self.layer, self.name, self.rows, self.cols, self.rank, self.dtype, self.sha256)

    @property
    def nbytes(self) -> int:
        """Published bytes of all parts; a shared v counts at the tensor it is named after."""
        if self.form == "packed":
            return packed_bytes(self.rows, self.cols, self.rank, PACKED_BITS[self.dtype], self.group)
        item = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}[self.dtype]
        scale = 4 if self.dtype == "int8" else 0
        if self.form == "lowrank":
            own = self.rows * (self.rank * item + scale)
            return own if self.stack not in ("", self.name) else own + self.rank * (self.cols * item + scale)
        return self.rows * (self.cols * item + scale)


def part_names(name: str, form: str, dtype: str, rank: int = 0, stack: str = "") -> tuple[str, ...]:
    """Names inside the safetensors file of the parts of tensor `name`, in hashing order."""
    if form == "packed":
        factors = (f"{name}.u", f"{name}.v", f"{name}.uv.scale") if rank else ()
        return (f"{name}.q", f"{name}.q.mult", f"{name}.q.scale", *factors)
    parts = (f"{name}.u", f"{stack or name}.v") if form == "lowrank" else (name,)
    return parts + tuple(f"{part}.scale" for part in parts) if dtype == "int8" else parts


def _check_stacks(tensors: Iterable[TensorInfo]) -> None:
    """Raises ValueError unless every shared v belongs to a tensor of the same file, with the same shape of v."""
    owners = {t.name: t for t in tensors if t.stack == t.name}
    for tensor in tensors:
        owner = owners.get(tensor.stack)
        shape = (tensor.layer, tensor.rank, tensor.cols, tensor.dtype)
        if tensor.stack and (owner is None or shape != (owner.layer, owner.rank, owner.cols, owner.dtype)):
            raise ValueError(f"{tensor.name} shares a factor that {tensor.stack} does not have")


def _file_of_layer(layer: int) -> str:
    if layer == LAYER_EMBED:
        return EMBED_FILE
    return HEAD_FILE if layer == LAYER_HEAD else layer_file(layer)


def _is_none(value: object) -> bool:
    return value is None


class Manifest(_Strict):
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
        _check_stacks(self.tensors)
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
        return dict(_sorted_leaves(self.tensors, self.files))

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

    def verify_tensor(self, tensor: TensorInfo, proof: list[bytes]) -> bool:
        return verify_weights(self.root, tensor.leaf, proof)

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


def _sorted_leaves(tensors: Iterable[TensorInfo], files: Iterable[FileInfo]) -> list[tuple[tuple[int, str], bytes]]:
    leaves = {(t.layer, t.name): t.leaf for t in tensors}
    leaves |= {
        (LAYER_FILES, f.name): weight_leaf(LAYER_FILES, f.name, f.size, 0, 0, "", f.sha256) for f in files if f.is_plain
    }
    return sorted(leaves.items())


def weights_root(tensors: Iterable[TensorInfo], files: Iterable[FileInfo]) -> bytes:
    """Merkle root over all tensors and plain files, sorted by (layer, name)."""
    return WeightsTree([leaf for _, leaf in _sorted_leaves(tensors, files)]).root
