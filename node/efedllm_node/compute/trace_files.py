"""The bytes a job read and wrote, as files for each job, by job and boundary; with the taps of an exact model."""

from __future__ import annotations

import asyncio
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from efedllm.errors import ModelError

IN, OUT, TAPS = "in.bin", "out.bin", "taps.bin"


class TraceWriter:
    """Appends to one job's files without blocking the event loop; order is kept by the store's single thread."""

    def __init__(self, directory: Path, disk: ThreadPoolExecutor) -> None:
        self._directory = directory
        self._disk = disk
        self._files: dict[str, BinaryIO] = {}
        self._failure: OSError | None = None

    def append(self, name: str, data: bytes) -> None:
        """Queue `data` for the file `name` (IN, OUT or TAPS). A failure surfaces in `finish`."""
        self._disk.submit(self._append, name, data)

    async def finish(self) -> None:
        """Everything is on disk. ModelError "cannot-write" when it is not."""
        await asyncio.wrap_future(self._disk.submit(self._close, True))
        if self._failure is not None:
            raise ModelError(
                "cannot-write", f"The trace in {self._directory} cannot be written: {self._failure.strerror}."
            ) from self._failure

    async def abandon(self) -> None:
        """Close the files; what is there stays."""
        await asyncio.wrap_future(self._disk.submit(self._close, False))

    # --- on the disk thread ---

    def _append(self, name: str, data: bytes) -> None:
        if self._failure is not None:
            return
        try:
            if name not in self._files:
                self._directory.mkdir(parents=True, exist_ok=True)
                # Closed in _close, on this thread. Unbuffered: a killed process loses nothing that was written.
                self._files[name] = (self._directory / name).open("ab", buffering=0)
            self._files[name].write(data)
        except OSError as error:
            self._failure = error

    def _close(self, sync: bool) -> None:
        for file in self._files.values():
            try:
                if sync:
                    os.fsync(file.fileno())
                file.close()
            except OSError as error:
                self._failure = self._failure or error
        self._files.clear()


class Traces:
    """All jobs' files below one directory."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="disk")

    def _path(self, job_id: bytes) -> Path:
        return self._root / job_id.hex()

    def writer(self, job_id: bytes) -> TraceWriter:
        """A writer for a new job."""
        return TraceWriter(self._path(job_id), self._disk)

    def path(self, job_id: bytes, name: str) -> Path:
        """Where a job's file lies, if it is kept."""
        return self._path(job_id) / name

    async def read(self, job_id: bytes, name: str) -> bytes:
        """A whole file; ModelError "no-trace" when it is not kept any more."""
        try:
            return await asyncio.to_thread((self._path(job_id) / name).read_bytes)
        except OSError as error:
            raise ModelError("no-trace", f"The trace of job 0x{job_id.hex()} is not kept.") from error

    async def size(self, job_id: bytes, name: str) -> int:
        """Bytes of a file, 0 when there is none."""
        path = self._path(job_id) / name
        return await asyncio.to_thread(lambda: path.stat().st_size if path.exists() else 0)

    async def remove(self, job_id: bytes) -> None:
        """Forget a job's bytes."""
        await asyncio.to_thread(shutil.rmtree, self._path(job_id), True)

    def close(self) -> None:
        """Stop the disk thread once everything queued is written."""
        self._disk.shutdown(wait=True)
