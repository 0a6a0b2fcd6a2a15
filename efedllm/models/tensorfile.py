"""Reading and writing safetensors files byte for byte, without torch: the same tensors always give the same file."""

from __future__ import annotations

import ctypes
import hashlib
import json
import mmap
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from efedllm.errors import ModelError
from efedllm.models.manifest import TensorInfo
from efedllm.models.packing import PACKED_BITS, group_count, row_bytes

_TO_SAFETENSORS = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "int8": "I8", "uint8": "U8"}
_FROM_SAFETENSORS = {code: name for name, code in _TO_SAFETENSORS.items()}
ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1, "uint8": 1}
_MAX_HEADER = 64 << 20
# Linux 5.14; the mmap module has no name for it.
_POPULATE_READ = 22


@dataclass(frozen=True)
class Part:
    """One array to write: little-endian row-major bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes | memoryview


@dataclass(frozen=True)
class Slot:
    """Where one array lies in a file: `start`, `end` are byte offsets from the beginning of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def write_tensor_file(path: Path, parts: Mapping[str, Part]) -> None:
    """Write a safetensors file whose bytes depend only on `parts`: wide dtypes first (alignment), then by name.

    Written beside `path` and renamed, so that a crash leaves either the old file or the new one.
    """
    order = sorted(parts, key=lambda name: (-ITEMSIZE[parts[name].dtype], name))
    header: dict[str, object] = {}
    offset = 0
    for name in order:
        part = parts[name]
        size = len(part.data)
        header[name] = {
            "dtype": _TO_SAFETENSORS[part.dtype],
            "shape": list(part.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=True).encode()
    encoded += b" " * (-len(encoded) % 8)
    partial = path.with_name(path.name + ".tmp")
    with partial.open("wb") as out:
        out.write(struct.pack("<Q", len(encoded)))
        out.write(encoded)
        for name in order:
            out.write(parts[name].data)
    partial.replace(path)


class TensorFile:
    """A memory-mapped safetensors file. A context manager; views taken from it keep the mapping alive on their own.

    Raises ModelError "corrupt-weights" when the file is not a well-formed safetensors file, naming it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                # Copy on write: nothing is copied unless written to, and array libraries get the writable buffer
                # they ask for.
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:
            raise ModelError(
                "missing-file", f"{path.name} cannot be read: {error}.", "Fetch the model again, or check --model."
            ) from error
        self.slots = _parse(path, self._map)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Unmap, unless views are still in use: they then hold the mapping until they go."""
        try:
            self._map.close()
        except BufferError:
            return

    def slot(self, name: str) -> Slot:
        try:
            return self.slots[name]
        except KeyError:
            raise _corrupt(self.path, f"has no tensor {name}") from None

    def view(self, name: str) -> memoryview:
        """The bytes of one array; no copy."""
        slot = self.slot(name)
        return memoryview(self._map)[slot.start : slot.end]

    def populate(self) -> None:
        """Read the whole file into memory in one go, where the system can; pages come in one by one otherwise."""
        try:
            self._map.madvise(_POPULATE_READ)
        except (OSError, ValueError):
            self._map.madvise(mmap.MADV_WILLNEED)

    def release(self, used: Iterable[tuple[int, int]]) -> None:
        """Give the pages of every array back to the system that none of the (address, bytes) in `used` lies in.

        Arrays stay readable: their pages then come from the file again.
        """
        with memoryview(self._map) as view:
            base = ctypes.addressof(ctypes.c_char.from_buffer(view))
        kept = [(address - base, address - base + size) for address, size in used]
        for slot in self.slots.values():
            if any(start < slot.end and slot.start < end for start, end in kept):
                continue
            first = -(-slot.start // mmap.PAGESIZE) * mmap.PAGESIZE
            last = slot.end // mmap.PAGESIZE * mmap.PAGESIZE
            if first < last:
                self._map.madvise(mmap.MADV_DONTNEED, first, last - first)


def _parse(path: Path, data: mmap.mmap) -> dict[str, Slot]:
    if len(data) < 8:
        raise _corrupt(path, "is too short")
    (length,) = struct.unpack("<Q", data[:8])
    if length > min(_MAX_HEADER, len(data) - 8):
        raise _corrupt(path, "has a header longer than the file")
    base = 8 + length
    slots: dict[str, Slot] = {}
    try:
        header = json.loads(data[8:base])
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            dtype = _FROM_SAFETENSORS[entry["dtype"]]
            shape = tuple(int(n) for n in entry["shape"])
            start, end = (int(n) for n in entry["data_offsets"])
            slots[name] = Slot(dtype, shape, base + start, base + end)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _corrupt(path, "has an unreadable header") from error
    for name, slot in slots.items():
        size = ITEMSIZE[slot.dtype]
        for n in slot.shape:
            size *= n
        if not base <= slot.start <= slot.end <= len(data) or slot.end - slot.start != size:
            raise _corrupt(path, f"has wrong offsets for {name}")
    return slots


def part_layout(tensor: TensorInfo) -> list[tuple[str, str, tuple[int, ...]]]:
    """(name, dtype, shape) of every part of `tensor`, in hashing order. A vector (cols 1, dense) has shape [rows]."""
    if tensor.form == "packed":
        rows, cols, rank = tensor.rows, tensor.cols, tensor.rank
        layout: list[tuple[str, tuple[int, ...]]] = [
            ("uint8", (rows, row_bytes(cols, PACKED_BITS[tensor.dtype]))),
            ("int8", (rows, group_count(cols, tensor.group))),
            ("float32", (rows,)),
        ]
        if rank:
            layout += [("int8", (rows, rank)), ("int8", (rank, cols)), ("float32", (rank,))]
        return [(name, dtype, shape) for name, (dtype, shape) in zip(tensor.parts, layout, strict=True)]
    if tensor.form == "lowrank":
        shapes: list[tuple[int, ...]] = [(tensor.rows, tensor.rank), (tensor.rank, tensor.cols)]
    else:
        shapes = [(tensor.rows, tensor.cols) if tensor.cols > 1 else (tensor.rows,)]
    matrices = list(zip(tensor.parts, [tensor.dtype] * len(shapes), shapes, strict=False))
    scales = [(name, "float32", (shape[0],)) for name, shape in zip(tensor.parts[len(shapes) :], shapes, strict=False)]
    return [*matrices, *scales]


def check_layout(file: TensorFile, tensor: TensorInfo) -> None:
    """Raises ModelError "corrupt-weights" unless the parts of `tensor` have the dtypes and shapes its entry says."""
    for name, dtype, shape in part_layout(tensor):
        slot = file.slot(name)
        if slot.dtype != dtype or slot.shape != shape:
            raise _corrupt(file.path, f"has {name} as {slot.dtype}{list(slot.shape)}, not {dtype}{list(shape)}")


def check_hash(file: TensorFile, tensor: TensorInfo) -> None:
    """Raises ModelError "corrupt-weights" unless the bytes of `tensor` hash to its entry."""
    if hash_parts(file.view(name) for name in tensor.parts) != tensor.sha256:
        raise _corrupt(file.path, f"does not match the published hash of {tensor.name}")


def hash_parts(parts: Iterable[bytes | memoryview]) -> str:
    """sha256, in hex, over the canonical bytes of the parts of one tensor, in order."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _corrupt(path: Path, what: str) -> ModelError:
    return ModelError("corrupt-weights", f"{path.name} {what}.", "Delete it and fetch the model again.")
