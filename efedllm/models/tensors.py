"""The tensors and files of a published model: how each is laid out, and the Merkle leaves and root over them.

Needs neither torch nor transformers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from efedllm.commitments.hashing import keccak
from efedllm.commitments.merkle import WeightsTree
from efedllm.models.packing import PACKED_BITS, packed_bytes

EMBED_FILE = "embed.safetensors"
HEAD_FILE = "head.safetensors"

# Pseudo layers: sort after every transformer layer.
LAYER_FILES = 0xFFFD
LAYER_HEAD = 0xFFFE
LAYER_EMBED = 0xFFFF
MAX_LAYERS = LAYER_FILES - 1

DTYPE_CODES = {"": 0, "float32": 1, "bfloat16": 2, "float16": 3, "int8": 4}
DTYPE_CODES |= {"int2": 5, "int3": 6, "int4": 7, "int5": 8, "int6": 9}

TensorDtype = Literal["float32", "bfloat16", "float16", "int8", "int2", "int3", "int4", "int5", "int6"]
TensorForm = Literal["dense", "lowrank", "packed"]
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


class Strict(BaseModel):
    """Part of a manifest: nothing is converted, added or changed."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class FileInfo(Strict):
    """One file of the published directory, other than the manifest itself. `size` in bytes."""

    name: FileName
    size: Annotated[int, Field(ge=0, lt=1 << 48)]
    sha256: Sha256

    @classmethod
    def of(cls, path: Path) -> Self:
        """The entry of the file at `path`. Raises OSError."""
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return cls(name=path.name, size=path.stat().st_size, sha256=digest)

    @property
    def is_plain(self) -> bool:
        """True for config and tokenizer files, which have a leaf of their own; weight files are covered per tensor."""
        return not self.name.endswith(".safetensors")


class TensorInfo(Strict):
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


def check_stacks(tensors: Iterable[TensorInfo]) -> None:
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


def sorted_leaves(tensors: Iterable[TensorInfo], files: Iterable[FileInfo]) -> list[tuple[tuple[int, str], bytes]]:
    """((layer, name), leaf) of all tensors and plain files, in the order of the tree."""
    leaves = {(t.layer, t.name): t.leaf for t in tensors}
    leaves |= {
        (LAYER_FILES, f.name): weight_leaf(LAYER_FILES, f.name, f.size, 0, 0, "", f.sha256) for f in files if f.is_plain
    }
    return sorted(leaves.items())


def weights_root(tensors: Iterable[TensorInfo], files: Iterable[FileInfo]) -> bytes:
    """Merkle root over all tensors and plain files, sorted by (layer, name)."""
    return WeightsTree([leaf for _, leaf in sorted_leaves(tensors, files)]).root
