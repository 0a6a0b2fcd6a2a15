"""Starting, watching and stopping the node and verifier processes of a local network. Restarts none."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from efedllm_deploy.process import Child, ProcessError, spawn

# One thread each: several processes share the machine, and results must not depend on the number of threads.
THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}

# Importing torch in several processes at once takes a while on a small machine.
READY_SECONDS = 180.0


@dataclass(frozen=True)
class ProcessSpec:
    """What to run: `python -m module args...`, known as `name`."""

    name: str
    module: str
    args: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Managed:
    """A started process and what its ready line said."""

    spec: ProcessSpec
    child: Child
    ready: dict[str, Any]


class Supervisor:
    """Processes by name. stderr of each goes to <logs>/<name>.log."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._running: dict[str, Managed] = {}
        self._starting: set[Child] = set()

    @property
    def running(self) -> list[Managed]:
        """Processes that were started and not stopped, dead ones included."""
        return list(self._running.values())

    async def start(self, spec: ProcessSpec, deadline: float = READY_SECONDS) -> Managed:
        """Start a process and wait for its ready line. Raises ProcessError; the process is gone then."""
        if spec.name in self._running:
            raise ProcessError("already-running", f"{spec.name} is running already.")
        argv = [sys.executable, "-m", spec.module, *spec.args]
        log = self._logs / f"{spec.name}.log"
        child = await spawn(spec.name, argv, log, env={**THREADS, **spec.env}, pipe_stdout=True)
        self._starting.add(child)
        try:
            ready = _parse_ready(spec.name, await child.first_line(deadline, "before it was ready"), child.log)
        except BaseException:
            await child.stop(grace=1.0)
            raise
        finally:
            self._starting.discard(child)
        managed = Managed(spec, child, ready)
        self._running[spec.name] = managed
        return managed

    async def start_all(self, specs: Sequence[ProcessSpec], deadline: float = READY_SECONDS) -> list[Managed]:
        """Start several at once. When one fails all of them are stopped and its error is raised."""
        tasks = [asyncio.create_task(self.start(spec, deadline)) for spec in specs]
        try:
            return list(await asyncio.gather(*tasks))
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.gather(*(self.stop(spec.name) for spec in specs if spec.name in self._running))
            raise

    async def stop(self, name: str, grace: float = 15.0) -> None:
        """Stop one process: SIGTERM, and SIGKILL after `grace` seconds."""
        managed = self._running.pop(name, None)
        if managed is not None:
            await managed.child.stop(grace)

    async def stop_all(self, grace: float = 15.0) -> None:
        """Stop everything, all at once."""
        children = [managed.child for managed in self._running.values()] + list(self._starting)
        self._running.clear()
        await asyncio.gather(*(child.stop(grace) for child in children))

    async def wait_for_death(self) -> ProcessError:
        """Return, as an error to show, when a process ends that nobody stopped."""
        while True:
            for managed in self._running.values():
                if not managed.child.alive:
                    return managed.child.died("while the network was running")
            await asyncio.sleep(0.5)


def _parse_ready(name: str, line: bytes, log: Path) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except ValueError as error:
        raise ProcessError("bad-ready", f"{name} printed something else than its ready line.", f"See {log}") from error
    if "error" in message:
        problem = message["error"]
        raise ProcessError(str(problem.get("code", "failed")), f"{name}: {problem.get('message', '')}", f"See {log}")
    if message.get("event") != "ready":
        raise ProcessError("bad-ready", f"{name} printed something else than its ready line.", f"See {log}")
    return dict(message)
