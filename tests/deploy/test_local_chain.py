"""Local chains and child processes: they start, keep time, resume, and leave nothing behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from efedllm.chain.connection import Rpc
from efedllm.checkout import project_root
from efedllm.errors import ChainError, ConfigError
from efedllm_deploy.chain_programs import PACKAGES, Kind, ensure_program, program
from efedllm_deploy.devclock import DevClock, tick
from efedllm_deploy.local import LocalChain, free_port
from efedllm_deploy.process import ProcessError, spawn
from efedllm_deploy.supervisor import ProcessSpec, Supervisor
from tests.live_network import eventually


def alive(pid: int) -> bool:
    """The process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def gone(pid: int) -> bool:
    """The process has ended."""
    return not alive(pid)


@pytest.mark.parametrize("kind", ["ganache", "anvil"])
async def test_time_flows_and_a_kept_chain_resumes_without_going_back(kind: Kind, tmp_path: Path) -> None:
    keep = tmp_path / "db"
    async with await LocalChain.start(kind, log=tmp_path / "log", keep=keep, period=0.1) as chain:
        clock = DevClock(chain.rpc, int(time.time()), 60)
        first = await clock.now()

        async def ticked() -> bool:
            return (await clock.now()).block >= first.block + 3

        await eventually(ticked, "three blocks")
        jumped = await clock.skip_to(50, 0.5)
        # Anvil saves its state once a second.
        await asyncio.sleep(1.2 if kind == "anvil" else 0)
        pid, port = chain.child.pid, int(chain.url.rpartition(":")[2])
    assert not alive(pid)
    async with await LocalChain.start(kind, log=tmp_path / "log", keep=keep, port=port, period=None) as chain:
        again = DevClock(chain.rpc, clock._genesis, 60)
        assert (await again.now()).timestamp >= jumped.timestamp
        await again.mine()
        assert (await again.now()).timestamp >= jumped.timestamp


async def test_an_idle_chain_mines_less(anvil: str) -> None:
    rpc = Rpc(anvil)
    ticking = asyncio.create_task(tick(rpc, period=0.05, idle_period=30.0, idle_after=0.3))
    try:
        # After the last quick block it sleeps for the idle period.
        await asyncio.sleep(1.0)
        height = await rpc.integer("eth_blockNumber")
        await asyncio.sleep(0.3)
        assert await rpc.integer("eth_blockNumber") == height
    finally:
        ticking.cancel()
        await asyncio.gather(ticking, return_exceptions=True)
        await rpc.close()


async def test_clock_of_a_foreign_chain_is_left_alone(tmp_path: Path) -> None:
    async with await LocalChain.start("anvil", log=tmp_path / "log", chain_id=424242, period=None) as chain:
        with pytest.raises(ChainError) as caught:
            await DevClock(chain.rpc, 0, 60).skip_to(5, 0.1)
        assert caught.value.code == "not-local"


async def test_a_taken_port_is_an_error_with_the_log(tmp_path: Path) -> None:
    server = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        with pytest.raises(ProcessError) as caught:
            await LocalChain.start("ganache", log=tmp_path / "log", port=port)
        assert str(tmp_path / "log") in caught.value.hint
    finally:
        server.close()


async def test_an_outage_of_the_chain_itself(tmp_path: Path) -> None:
    """A stopped (not dead) server answers again when it continues, and the ticker carries on."""
    async with await LocalChain.start("ganache", log=tmp_path / "log", period=0.1) as chain:
        os.kill(chain.child.pid, signal.SIGSTOP)
        waiting = asyncio.create_task(chain.rpc.integer("eth_blockNumber"))
        await asyncio.sleep(0.5)
        assert not waiting.done()
        os.kill(chain.child.pid, signal.SIGCONT)
        block = await waiting

        async def mines_again() -> bool:
            return await chain.rpc.integer("eth_blockNumber") > block

        await eventually(mines_again, "another block")


PARENT = """
import asyncio, sys
from pathlib import Path
from efedllm_deploy.local import LocalChain
from efedllm_deploy.supervisor import ProcessSpec, Supervisor

async def main():
    home = Path(sys.argv[1])
    chain = await LocalChain.start("ganache", log=home / "g.log")
    supervisor = Supervisor(home)
    child = await supervisor.start(ProcessSpec("child", "http.server_ready", [], {"PYTHONPATH": str(home)}))
    print(chain.child.pid, child.child.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""

READY = """
import json, os, time
print("starting")
print(json.dumps({"event": "ready", "pid": os.getpid()}), flush=True)
while True:
    time.sleep(1)
"""


def write_child(folder: Path, name: str, text: str) -> dict[str, str]:
    """A module that a supervisor can run; returns the environment in which it is found."""
    (folder / f"{name}.py").write_text(text)
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(Path.cwd())])}


async def test_sigkill_of_the_parent_leaves_no_process(tmp_path: Path) -> None:
    env = write_child(tmp_path, "ready_child", READY)
    script = tmp_path / "parent.py"
    script.write_text(PARENT.replace("http.server_ready", "ready_child"))
    parent = await spawn("parent", [sys.executable, script, tmp_path], tmp_path / "p.log", env=env, pipe_stdout=True)
    assert parent.process.stdout is not None
    pids = [int(word) for word in (await parent.process.stdout.readline()).split()]
    assert len(pids) == 2, parent.tail()
    assert all(alive(pid) for pid in pids)
    os.kill(parent.pid, signal.SIGKILL)
    await parent.stop()
    for pid in pids:
        await eventually(partial(gone, pid), f"process {pid} is gone")


async def test_supervisor_reads_the_ready_line_and_stops_its_processes(tmp_path: Path) -> None:
    env = write_child(tmp_path, "ready_child", READY)
    supervisor = Supervisor(tmp_path / "logs")
    one, two = await supervisor.start_all([ProcessSpec(name, "ready_child", [], env) for name in ("one", "two")])
    assert one.ready["pid"] == one.child.pid
    with pytest.raises(ProcessError) as caught:
        await supervisor.start(one.spec)
    assert caught.value.code == "already-running"
    await supervisor.stop("one")
    assert not alive(one.child.pid)
    assert alive(two.child.pid)
    os.kill(two.child.pid, signal.SIGKILL)
    death = await asyncio.wait_for(supervisor.wait_for_death(), 10)
    assert death.code == "process-died"
    await supervisor.stop_all()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("import sys; sys.exit('no luck')", "process-died"),
        ("import time; time.sleep(60)", "process-slow"),
        ("print('{nonsense', flush=True); import time; time.sleep(60)", "bad-ready"),
        ("""print('{"event": "other"}', flush=True)""", "bad-ready"),
        ("""print('{"error": {"code": "no-stake", "message": "too little"}}', flush=True)""", "no-stake"),
    ],
)
async def test_one_bad_start_stops_all_of_them(tmp_path: Path, text: str, code: str) -> None:
    env = write_child(tmp_path, "ready_child", READY) | write_child(tmp_path, "bad_child", text)
    supervisor = Supervisor(tmp_path / "logs")
    specs = [ProcessSpec("good", "ready_child", [], env), ProcessSpec("bad", "bad_child", [], env)]
    with pytest.raises(ProcessError) as caught:
        await supervisor.start_all(specs, deadline=3.0)
    assert caught.value.code == code
    assert supervisor.running == []
    if code == "process-died":
        assert "no luck" in caught.value.message


async def test_a_process_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    env = write_child(tmp_path, "deaf_child", "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + READY)
    supervisor = Supervisor(tmp_path / "logs")
    managed = await supervisor.start(ProcessSpec("deaf", "deaf_child", [], env))
    await supervisor.stop("deaf", grace=0.2)
    assert not alive(managed.child.pid)


async def test_missing_programs_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("efedllm_deploy.chain_programs.find_project_root", lambda: None)
    monkeypatch.setenv("EFEDLLM_HOME", str(tmp_path / "home"))
    with pytest.raises(ConfigError) as caught:
        program("ganache")
    assert caught.value.code == "no-node-modules"
    assert "npm install" in caught.value.hint
    with monkeypatch.context() as changed:
        changed.setenv("PATH", str(tmp_path))
        with pytest.raises(ConfigError) as caught:
            await ensure_program("ganache")
    assert caught.value.code == "no-node-js"
    assert "--chain" in caught.value.hint
    with pytest.raises(ConfigError) as caught:
        await spawn("x", [str(tmp_path / "nothing")], tmp_path / "log")
    assert caught.value.code == "no-program"
    assert free_port() > 1024


def test_the_pinned_programs_are_those_of_the_checkout() -> None:
    pinned = json.loads((project_root() / "package.json").read_text())["devDependencies"]
    assert {name: pinned[name] for name in ("ganache", "@foundry-rs/anvil")} == dict(PACKAGES.values())


async def test_a_program_that_is_missing_is_installed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A stand-in for npm: it makes the file that the package has. tests/packaging runs the real one."""
    (tmp_path / "bin").mkdir()
    npm = tmp_path / "bin" / "npm"
    npm.write_text(
        '#!/bin/sh\nmkdir -p "$3/node_modules/ganache/dist/node"\n'
        'echo "$@" > "$3/node_modules/ganache/dist/node/cli.js"\n'
    )
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr("efedllm_deploy.chain_programs.find_project_root", lambda: None)
    monkeypatch.setenv("EFEDLLM_HOME", str(tmp_path / "home"))
    await asyncio.gather(ensure_program("ganache"), ensure_program("ganache"))
    programs = tmp_path / "home" / "chain-programs"
    script = Path(program("ganache")[1])
    assert script.is_relative_to(programs / "ganache-7.9.2")
    assert "ganache@7.9.2" in await asyncio.to_thread(script.read_text)
    assert "installing ganache 7.9.2 into" in capfd.readouterr().err
    assert sorted(path.name for path in (tmp_path / "home" / "chain-programs").iterdir()) == [
        "ganache-7.9.2",
        "npm.log",
    ]
    await ensure_program("ganache")
    assert capfd.readouterr().err == ""
