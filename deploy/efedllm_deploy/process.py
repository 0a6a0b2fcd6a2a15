"""Child processes that cannot outlive us: own process group, killed by the kernel when we die, stopped in order."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from efedllm.errors import ConfigError, EfedError

_PR_SET_PDEATHSIG = 1
_LOG_TAIL = 2000


class ProcessError(EfedError):
    """A process did not start, or died."""


def tie_to_parent(parent: int) -> Callable[[], None] | None:
    """What the child runs before exec so that Linux kills it when this process dies, even by SIGKILL."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def tie() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            # The parent died between fork and prctl.
            os._exit(1)

    return tie


@dataclass(eq=False)
class Child:
    """A running process; its stderr (and stdout unless piped) goes to `log`."""

    name: str
    process: asyncio.subprocess.Process
    log: Path
    _readers: list[asyncio.Task[None]] = field(default_factory=list)

    @property
    def pid(self) -> int:
        """Process id, which is also the id of its process group."""
        return self.process.pid

    @property
    def alive(self) -> bool:
        """It has not ended yet."""
        return self.process.returncode is None

    def tail(self) -> str:
        """The end of its log, for error messages."""
        try:
            return self.log.read_text(errors="replace")[-_LOG_TAIL:].strip()
        except OSError:
            return ""

    def died(self, what: str) -> ProcessError:
        """The error for a process that ended before it did what it should."""
        lines = self.tail().splitlines()
        last = f" Its last line: {lines[-1]}" if lines else ""
        return ProcessError(
            "process-died", f"{self.name} ended with code {self.process.returncode} {what}.{last}", f"See {self.log}"
        )

    def signal(self, number: int) -> None:
        """Signal the whole group; nothing happens when it is gone."""
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            return

    async def stop(self, grace: float = 10.0) -> None:
        """SIGTERM, then SIGKILL to whatever of the group is left after `grace` seconds."""
        if self.alive:
            self.signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(grace):
                    await self.process.wait()
            except TimeoutError:
                self.signal(signal.SIGKILL)
        self.signal(signal.SIGKILL)
        await self.process.wait()
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)
        # asyncio closes the pipes only when it sees their end, which may be after our event loop has gone.
        self.process._transport.close()  # type: ignore[attr-defined]

    async def first_line(self, deadline: float, what: str) -> bytes:
        """First line of stdout that starts with "{"; the process must have `pipe_stdout`. Raises ProcessError."""
        stdout = self.process.stdout
        if stdout is None:
            raise ProcessError("no-pipe", f"The output of {self.name} is not read.")
        try:
            async with asyncio.timeout(deadline):
                while line := await stdout.readline():
                    if line.lstrip().startswith(b"{"):
                        self._readers.append(asyncio.create_task(_drain(stdout)))
                        return line
                await self.process.wait()
        except TimeoutError as error:
            raise ProcessError(
                "process-slow", f"{self.name} did not report within {deadline:.0f} s {what}.", f"See {self.log}"
            ) from error
        raise self.died(what)


async def _drain(stream: asyncio.StreamReader) -> None:
    """Keep reading, so that the child never blocks on a full pipe."""
    while await stream.read(65536):
        pass


async def spawn(
    name: str,
    argv: Sequence[str | Path],
    log: Path,
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    pipe_stdout: bool = False,
    inherit: bool = False,
) -> Child:
    """Start a process tied to this one. Call it from the main thread: the kernel ties it to the calling thread.

    `inherit`: stdout is ours, for a program whose output a person should see.
    Raises ConfigError "no-program" when the program does not exist.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        try:
            process = await asyncio.create_subprocess_exec(
                *map(str, argv),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE if pipe_stdout else None if inherit else out,
                stderr=out,
                env={**os.environ, **(env or {})},
                cwd=cwd,
                start_new_session=True,
                preexec_fn=tie_to_parent(os.getpid()),
            )
        except (FileNotFoundError, PermissionError) as error:
            raise ConfigError("no-program", f"{argv[0]} cannot be run ({error.strerror}).", "Install it.") from error
    return Child(name, process, log)
