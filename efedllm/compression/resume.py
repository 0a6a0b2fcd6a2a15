"""Resuming: which files of an output directory an earlier run with the same options has finished."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from efedllm.compression.encode import Encoded
from efedllm.errors import ModelError
from efedllm.models.manifest import TensorInfo
from efedllm.models.tensorfile import write_tensor_file

_WORK = ".compress"


class WorkDirectory:
    """Notes beside the output, one per finished file: options hash, file hash, manifest entries. Removed at the end."""

    def __init__(self, out: Path, options_hash: str) -> None:
        self._out = out
        self._notes = out / _WORK
        self._options_hash = options_hash
        try:
            self._notes.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ModelError(
                "cannot-write", f"{out} cannot be written: {error.strerror}.", "Choose another --out."
            ) from error

    def has(self, name: str) -> bool:
        return self._entries(name) is not None

    def keep_or_write(self, name: str, make: Callable[[], Iterable[Encoded]]) -> list[TensorInfo]:
        """The entries of file `name`, made now unless an earlier run has."""
        found = self._entries(name)
        return self.write(name, make()) if found is None else found

    def entries(self, name: str) -> list[TensorInfo]:
        """Those of a file that this run, or an earlier one, has finished."""
        found = self._entries(name)
        if found is None:
            raise ModelError(
                "cannot-write", f"{name} changed while the model was being made.", "Run the command again."
            )
        return found

    def write(self, name: str, tensors: Iterable[Encoded]) -> list[TensorInfo]:
        """Write file `name`; returns its entries."""
        encoded = list(tensors)
        path = self._out / name
        write_tensor_file(path, {part: data for one in encoded for part, data in one.parts.items()})
        entries = [one.info for one in encoded]
        note = {
            "options": self._options_hash,
            "sha256": _digest(path),
            "tensors": [entry.model_dump(mode="json") for entry in entries],
        }
        partial = self._note(name).with_suffix(".tmp")
        partial.write_text(json.dumps(note))
        partial.replace(self._note(name))
        return entries

    def note(self, name: str) -> dict[str, Any] | None:
        """What `save_note` kept under `name` in a run with the same options."""
        try:
            note = json.loads(self._note(name).read_text())
            return dict(note["data"]) if note["options"] == self._options_hash else None
        except (OSError, ValueError, KeyError, TypeError):
            # Like a missing file's: what it said is found out again.
            return None

    def save_note(self, name: str, data: dict[str, Any]) -> None:
        partial = self._note(name).with_suffix(".tmp")
        partial.write_text(json.dumps({"options": self._options_hash, "data": data}))
        partial.replace(self._note(name))

    def scratch(self, name: str) -> Path:
        """A path for temporary data; gone with the notes at the end."""
        return self._notes / f"{name}.scratch"

    def folder(self, name: str) -> Path:
        """Likewise for a whole folder."""
        return self._notes / name

    def finish(self) -> None:
        shutil.rmtree(self._notes)

    def _note(self, name: str) -> Path:
        return self._notes / f"{name}.json"

    def _entries(self, name: str) -> list[TensorInfo] | None:
        path = self._out / name
        try:
            note = json.loads(self._note(name).read_text())
            if note["options"] != self._options_hash or not path.is_file() or _digest(path) != note["sha256"]:
                return None
            return [TensorInfo.model_validate_json(json.dumps(entry)) for entry in note["tensors"]]
        except (OSError, ValueError, KeyError, TypeError, ValidationError):
            # A missing or unreadable note only means that the file is made again.
            return None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
