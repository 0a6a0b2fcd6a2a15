"""Getting a published model by hash: from a directory, a node or any HTTP mirror. No torch.

A location is a directory or an http(s) URL. A URL whose path ends in /v1/model is a node (files below `files/`), any
other is a plain directory over HTTP. No location is trusted: size and SHA-256 of every file are checked before it
gets its name.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import aiohttp

from efedllm.errors import ModelError
from efedllm.models.manifest import MANIFEST_NAME, FileInfo, Manifest
from efedllm.models.tensorfile import TensorFile, check_hash, check_layout

FetchProgress = Callable[[int, int, str], None]
"""Called with (bytes done, bytes in total, file name)."""

_CHUNK = 1 << 20
_ATTEMPTS = 3
_TIMEOUT = aiohttp.ClientTimeout(total=None, connect=10, sock_read=30)
_MAX_MANIFEST = 64 << 20
_PATIENCE = 30.0
"""Seconds an answer may take to begin, a manifest to arrive, and a file before its speed counts."""
_LEAST_SPEED = 16 << 10
"""Bytes per second: a source that sends less is left. Each of its bytes would keep the connection alive."""


class WeightSource:
    """Fetches from the first location that answers with the right bytes, in the order given; who did not answer
    comes last."""

    def __init__(self, locations: Sequence[str | Path]) -> None:
        if not locations:
            raise ModelError("no-source", "No place to fetch the model from was given.", "Pass --model DIR or URL.")
        self._locations = [str(location) for location in locations]
        self._manifest: Manifest | None = None

    async def manifest(self, expected_root: bytes | None = None, expected_hash: bytes | None = None) -> Manifest:
        """The first manifest found; with `expected_root` and `expected_hash`, the first with that weights root and that
        hash. Only the hash binds what the weights do not: profile, constants, tolerance.

        Raises ModelError "wrong-root" or "wrong-manifest" when every manifest found is another one, else the first
        location's error.
        """
        failure: ModelError | None = None
        async with aiohttp.ClientSession(timeout=_TIMEOUT) as session:
            for location in self._locations:
                try:
                    manifest = Manifest.parse(await _read_manifest(session, location))
                except ModelError as error:
                    failure = failure or error
                    continue
                try:
                    _check_identity(manifest, location, expected_root, expected_hash)
                except ModelError as error:
                    failure = error
                    continue
                self._manifest = manifest
                return manifest
        assert failure is not None
        raise failure

    async def fetch(self, names: Sequence[str], dest: Path, progress: FetchProgress | None = None) -> Manifest:
        """Bring the files `names` of the manifest found last, and manifest.json, into `dest`; returns that manifest.

        Files already there with the right hash are kept; a partial download (NAME.part) is continued. Raises ModelError
        "corrupt-weights" when the only answers had wrong bytes, "missing-file" or "source-unreachable" when there
        was none.
        """
        manifest = self._manifest or await self.manifest()
        try:
            await self._fetch_all(manifest, [manifest.file(name) for name in names], dest, progress)
        except OSError as error:
            raise ModelError(
                "cannot-write",
                f"{error.filename or dest} cannot be written: {error.strerror}.",
                "Free some space, or choose another directory.",
            ) from error
        return manifest

    async def _fetch_all(
        self, manifest: Manifest, wanted: Sequence[FileInfo], dest: Path, progress: FetchProgress | None
    ) -> None:
        total = sum(info.size for info in wanted)
        await asyncio.to_thread(dest.mkdir, parents=True, exist_ok=True)
        done = 0
        async with aiohttp.ClientSession(timeout=_TIMEOUT) as session:
            for info in wanted:
                base, name = done, info.name

                def report(part: int, base: int = base, name: str = name) -> None:
                    if progress is not None:
                        progress(base + part, total, name)

                report(0)
                if not await asyncio.to_thread(_is_complete, dest / info.name, info):
                    await self._fetch_one(session, info, dest, report)
                done += info.size
                report(info.size)
        await asyncio.to_thread(manifest.save, dest)

    async def _fetch_one(
        self, session: aiohttp.ClientSession, info: FileInfo, dest: Path, report: Callable[[int], None]
    ) -> None:
        failures: list[ModelError] = []
        for location in tuple(self._locations):
            try:
                await _from_location(session, location, info, dest, report)
                return
            except ModelError as error:
                failures.append(error)
                if error.code == "source-unreachable":
                    # The next file asks it last: a source that stalls costs its patience once, not for every file.
                    self._locations.remove(location)
                    self._locations.append(location)
        # Wrong bytes are worth more attention than a mirror that is down.
        raise next((f for f in failures if f.code == "corrupt-weights"), failures[-1])


async def fetch_published(
    locations: Sequence[str | Path],
    dest: Path,
    expected_root: bytes | None,
    lo: int,
    hi: int,
    progress: FetchProgress | None = None,
    expected_hash: bytes | None = None,
) -> Manifest:
    """Fetch and verify what a node of layers [lo, hi) needs. Returns the manifest; `dest` is then ready to load."""
    source = WeightSource(locations)
    manifest = await source.manifest(expected_root, expected_hash)
    await source.fetch(manifest.files_for(lo, hi), dest, progress)
    return await asyncio.to_thread(open_published, dest, manifest.root, lo, hi, expected_hash)


def open_published(
    directory: Path, expected_root: bytes | None, lo: int, hi: int, expected_hash: bytes | None = None
) -> Manifest:
    """Check the part of a published directory that layers [lo, hi) use, and return its manifest.

    With `expected_root` the manifest must have that weights root and every tensor and plain file its published hash;
    without, only presence, dtypes and shapes are checked. With `expected_hash` the manifest must have that hash.
    Raises ModelError "not-published", "bad-manifest", "bad-range", "wrong-root", "wrong-manifest", "missing-file" or
    "corrupt-weights", naming the file.
    """
    manifest = Manifest.load(directory)
    manifest.check_range(lo, hi)
    _check_identity(manifest, str(directory), expected_root, expected_hash)
    tensors = manifest.tensors_for(lo, hi)
    for name in manifest.files_for(lo, hi):
        info = manifest.file(name)
        if info.is_plain:
            if expected_root is not None and not _is_complete(directory / name, info):
                raise _corrupt(name, str(directory))
            continue
        with TensorFile(directory / name) as file:
            for tensor in (t for t in tensors if t.file == name):
                check_layout(file, tensor)
                if expected_root is not None:
                    check_hash(file, tensor)
    return manifest


async def _from_location(
    session: aiohttp.ClientSession, location: str, info: FileInfo, dest: Path, report: Callable[[int], None]
) -> None:
    """Complete NAME.part from one location, check it, rename it. A wrong hash discards what was fetched."""
    partial = dest / f"{info.name}.part"
    failure: ModelError | None = None
    for _ in range(_ATTEMPTS):
        have = await asyncio.to_thread(_size, partial)
        if have > info.size:
            await asyncio.to_thread(partial.unlink)
            have = 0
        try:
            if have < info.size or info.size == 0:
                await _append(session, location, info, partial, have, report)
        except ModelError as error:
            failure = error
            if error.code != "source-unreachable":
                break
            continue
        if await asyncio.to_thread(_is_complete, partial, info):
            await asyncio.to_thread(partial.replace, dest / info.name)
            return
        failure = _corrupt(info.name, location)
        if have == 0:
            break
        # The part left by an earlier run may have been the wrong one: begin again, once.
        await asyncio.to_thread(partial.unlink, missing_ok=True)
    await asyncio.to_thread(_drop_if_whole, partial, info)
    assert failure is not None
    raise failure


async def _append(
    session: aiohttp.ClientSession,
    location: str,
    info: FileInfo,
    partial: Path,
    have: int,
    report: Callable[[int], None],
) -> None:
    """Append what `location` has from byte `have` on; at most one byte more than `info.size` is kept."""
    stream, start = (
        await _open_http(session, location, info.name, have)
        if is_url(location)
        else (_read_local(Path(location) / info.name, have), have)
    )
    out = await asyncio.to_thread(partial.open, "ab" if start else "wb")
    written, begun = start, time.monotonic()
    try:
        async for chunk in stream:
            await asyncio.to_thread(out.write, chunk[: info.size + 1 - written])
            written = min(info.size + 1, written + len(chunk))
            if written > info.size:
                raise _corrupt(info.name, location)
            report(written)
            late = time.monotonic() - begun - _PATIENCE
            if late > 0 and written - start < late * _LEAST_SPEED:
                raise _unreachable(location, f"{info.name} comes at less than {_LEAST_SPEED} bytes a second")
    except (aiohttp.ClientError, TimeoutError) as error:
        raise _unreachable(location, error) from error
    finally:
        await asyncio.to_thread(out.close)
    if written < info.size and is_url(location):
        raise _unreachable(location, f"{info.name} ended after {written} of {info.size} bytes")


async def _open_http(
    session: aiohttp.ClientSession, base: str, name: str, start: int
) -> tuple[AsyncIterator[bytes], int]:
    """Body of a file from byte `start` on, and where it really starts: 0 when the server ignores ranges."""
    headers = {"Range": f"bytes={start}-"} if start else {}
    try:
        async with asyncio.timeout(_PATIENCE):
            response = await session.get(_url(base, name), headers=headers)
    except (aiohttp.ClientError, TimeoutError) as error:
        raise _unreachable(base, error) from error
    if response.status not in (200, 206):
        response.release()
        raise _http_failure(base, name, response.status)
    begins = start if response.status == 206 else 0

    async def body() -> AsyncIterator[bytes]:
        async with response:
            async for chunk in response.content.iter_chunked(_CHUNK):
                yield chunk

    return body(), begins


async def _read_local(path: Path, start: int) -> AsyncIterator[bytes]:
    try:
        file = await asyncio.to_thread(path.open, "rb")
    except OSError as error:
        raise _missing(path.name, str(path.parent)) from error
    try:
        await asyncio.to_thread(file.seek, start)
        while chunk := await asyncio.to_thread(file.read, _CHUNK):
            yield chunk
    finally:
        await asyncio.to_thread(file.close)


async def _read_manifest(session: aiohttp.ClientSession, location: str) -> bytes:
    if not is_url(location):
        return await asyncio.to_thread(lambda: Manifest.load(Path(location)).canonical_json())
    try:
        async with asyncio.timeout(_PATIENCE), session.get(_url(location, MANIFEST_NAME)) as response:
            if response.status != 200:
                raise _http_failure(location, MANIFEST_NAME, response.status)
            data = b""
            async for chunk in response.content.iter_chunked(_CHUNK):
                data += chunk
                if len(data) > _MAX_MANIFEST:
                    raise _corrupt(MANIFEST_NAME, location)
            return data
    except (aiohttp.ClientError, TimeoutError) as error:
        raise _unreachable(location, error) from error


def is_url(location: str) -> bool:
    """Whether a location is fetched over HTTP; else it is a directory."""
    return location.startswith(("http://", "https://"))


def _url(base: str, name: str) -> str:
    base = base.rstrip("/")
    nested = base.endswith("/v1/model") and name != MANIFEST_NAME
    return f"{base}/files/{name}" if nested else f"{base}/{name}"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _is_complete(path: Path, info: FileInfo) -> bool:
    if _size(path) != info.size or not path.is_file():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == info.sha256


def _drop_if_whole(partial: Path, info: FileInfo) -> None:
    """Remove a part that reached full size with the wrong bytes; a shorter one is worth continuing elsewhere."""
    if _size(partial) >= info.size:
        partial.unlink(missing_ok=True)


def _http_failure(location: str, name: str, status: int) -> ModelError:
    if status in (404, 410, 416):
        return _missing(name, location)
    return _unreachable(location, f"HTTP status {status} for {name}")


def _missing(name: str, location: str) -> ModelError:
    return ModelError("missing-file", f"{location} does not have {name}.", "Give another --model location.")


def _unreachable(location: str, why: object) -> ModelError:
    reason = str(why) or type(why).__name__
    return ModelError(
        "source-unreachable",
        f"{location} cannot be read: {reason}.",
        "Check the address, or give another --model location.",
    )


def _corrupt(name: str, location: str) -> ModelError:
    return ModelError(
        "corrupt-weights",
        f"{name} from {location} does not match its published hash.",
        "Delete it, or give another --model location.",
    )


def _wrong_root(location: str, expected: bytes) -> ModelError:
    return ModelError(
        "wrong-root",
        f"The model at {location} is not the registered one: its weights root is not 0x{expected.hex()}.",
        "Give the location of the registered model.",
    )


def _check_identity(manifest: Manifest, location: str, root: bytes | None, digest: bytes | None) -> None:
    if root is not None and manifest.root != root:
        raise _wrong_root(location, root)
    if digest is not None and manifest.hash() != digest:
        raise ModelError(
            "wrong-manifest",
            f"The manifest at {location} is not the registered one: its hash is not 0x{digest.hex()}.",
            "Give the location of the registered model.",
        )
