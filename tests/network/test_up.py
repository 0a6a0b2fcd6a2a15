"""`efedllm up` as a person runs it: the commands beside it, what they refuse, and that a kept home resumes."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from efedllm.chain import Chain, Deployment
from efedllm.chain.amounts import WEI
from efedllm_deploy.local import dev_account, free_port
from efedllm_deploy.process import tie_to_parent
from tests.chain.drop_proxy import DropProxy
from tests.live_network import eventually
from tests.model_fixtures import use_model

pytestmark = pytest.mark.network

PROMPT = "def f("


def clean_environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("EFEDLLM_")}
    return {**kept, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", **more}


class Up:
    """The running command and its home."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.process: subprocess.Popen[str] | None = None
        self.ready: dict[str, Any] = {}

    def start(self) -> None:
        words = ("up", "--home", str(self.home), "--nodes", "2", "--verifiers", "1", "--json")
        with (self.home.parent / "up.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "efedllm_client", *words],
                cwd=self.home.parent,
                env=clean_environment(),
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                preexec_fn=tie_to_parent(os.getpid()),
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, (self.home.parent / "up.log").read_text()
        self.ready = json.loads(line)
        assert self.ready.get("event") == "ready", self.ready

    def end(self, number: signal.Signals) -> int:
        """Exit code after a signal."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(60)

    def left(self) -> list[str]:
        """Processes that still work for this network."""
        listed = subprocess.run(["ps", "-ewwo", "stat,args"], capture_output=True, text=True, check=True).stdout
        return [line for line in listed.splitlines() if str(self.home) in line and not line.startswith("Z")]

    async def is_gone(self) -> bool:
        """Nothing is left."""
        return not self.left()

    async def chain(self, index: int | None = None) -> Chain:
        account = None if index is None else dev_account(index)
        return await Chain.connect(
            self.ready["rpc_url"], Deployment.load(Path(self.ready["deployment"])), account, budget=5
        )

    async def facts(self) -> dict[str, Any]:
        """What a restart must not change."""
        members = [*self.ready["nodes"], *self.ready["verifiers"]]
        async with await self.chain() as chain:
            return {
                "model": self.ready["model_id"],
                "members": [(m["name"], m["address"], m.get("endpoint")) for m in members],
                "registered": len(await chain.history("NodeRegistry", "NodeRegistered")),
                "stakes": [(await chain.contracts.stake_vault.stake_of(m["address"])).active for m in members],
                "wallet": await chain.token_balance(self.ready["wallet_address"]),
            }


@pytest.fixture(scope="module")
def up(default_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    running = Up(tmp_path_factory.mktemp("up") / "home")
    use_model(running.home, default_model)
    try:
        running.start()
        yield running
    finally:
        if running.process is not None and running.process.poll() is None:
            running.end(signal.SIGINT)


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


async def efedllm(up: Up, *words: str, **environment: str) -> Done:
    """Run a command in a folder without settings; `--home` and the like come with `words` or the environment."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "efedllm_client", *words),
        cwd=up.home.parent,
        env=clean_environment(**environment),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode is not None
    assert b"Traceback" not in err, err.decode()
    return Done(process.returncode, out.decode(), err.decode())


def bad_deployment(up: Up, folder: Path) -> Path:
    """The network's deployment file, but of another chain."""
    path = folder / "5.json"
    path.write_text(Path(up.ready["deployment"]).read_text().replace('"chain_id": 1337', '"chain_id": 5'))
    return path


def bad_model(up: Up, folder: Path) -> Path:
    """The network's model with one bit of a weight file flipped."""
    copy = folder / "broken"
    shutil.copytree(up.ready["model_dir"], copy)
    file = copy / "layer-0002.safetensors"
    weights = bytearray(file.read_bytes())
    weights[-1] ^= 1
    file.write_bytes(weights)
    return copy


async def test_every_command_finds_the_local_network(up: Up) -> None:
    home = ("--home", str(up.home))
    done = await efedllm(up, "generate", PROMPT, "--max-tokens", "6", "--json", *home)
    assert done.code == 0, done.err
    assert done.json["receipts_ok"]
    addresses = [node["address"] for node in up.ready["nodes"]]
    for words, environment in ((home, {}), ((), {"EFEDLLM_HOME": str(up.home)})):
        nodes = (await efedllm(up, "node", "status", "--json", *words, **environment)).json["nodes"]
        assert [(node["name"], node["address"], node["status"]) for node in nodes] == [
            ("node-0", addresses[0], "active"),
            ("node-1", addresses[1], "active"),
        ]
    for role, member in (("node", "node-1"), ("verifier", up.ready["verifiers"][0]["address"])):
        shown = await efedllm(up, role, "status", *home)
        assert shown.code == 0, shown.err
        assert member in shown.out
    (verifier,) = (await efedllm(up, "verifier", "status", "--json", *home)).json["verifiers"]
    assert (verifier["name"], verifier["stake"]) == ("verifier-0", str(100 * WEI))
    # Somebody's own account is one account.
    one = await efedllm(up, "node", "status", "--json", "--keystore", str(up.home / "keys" / "node-1.json"), *home)
    assert one.json["address"] == addresses[1]
    assert (await efedllm(up, "wallet", "balance", "--json", *home)).json["in_sessions"] > 0
    view = (await efedllm(up, "network", "--json", *home)).json
    assert [model["uncovered"] for model in view["models"]] == [[]]


async def owned(up: Up) -> dict[str, Any]:
    """The client's balances. A node may settle a voucher at any time, which takes as much of what is promised as of
    what is in sessions.
    """
    balance = (await efedllm(up, "wallet", "balance", "--json", "--home", str(up.home))).json
    unspent = balance.pop("in_sessions") - balance.pop("promised")
    return {**balance, "unspent": unspent}


async def test_what_is_refused_is_one_line_with_a_code_and_costs_nothing(up: Up, tmp_path: Path) -> None:
    wallet, password = str(up.home / "keys" / "wallet.json"), str(up.home / "keys" / "password")
    other_chain, broken = bad_deployment(up, tmp_path), bad_model(up, tmp_path)
    serving = up.ready["nodes"][0]

    home = ("--home", str(up.home))
    client = ("generate", PROMPT, *home)
    network = ("--rpc", up.ready["rpc_url"], "--deployment", up.ready["deployment"])
    account = ("--keystore", wallet, "--password-file", password)
    job = ("--layers", "0:8", "--price", "1", "--model-id", up.ready["model_id"])
    node = ("node", "run", *network, *account, *job, "--home", str(tmp_path / "n"))
    model = ("--model", up.ready["model_dir"])
    down = f"http://127.0.0.1:{free_port()}"
    cases: list[tuple[str, tuple[str, ...]]] = [
        ("wrong-chain", (*client, "--deployment", str(other_chain))),
        ("unknown-model", (*client, "--model", "0xdead")),
        ("layers-not-covered", (*client, "--avoid", serving["address"])),
        ("rpc-down", (*client, "--rpc", down, "--deployment", up.ready["deployment"], *account)),
        ("bad-path", (*client, "--report", "/proc/nowhere/report.json")),
        ("home-busy", ("up", *home)),
        ("home-busy", ("demo", *home)),
        ("stake-too-low", (*node, *model, "--stake", "1")),
        ("corrupt-weights", (*node, "--model", str(broken), "--stake", "200")),
        ("port-in-use", (*node, *model, "--stake", "200", "--listen", serving["endpoint"].removeprefix("http://"))),
    ]
    before = await owned(up)
    for code, words in cases:
        done = await efedllm(up, *words, "--json", EFEDLLM_RPC_BUDGET="1")
        assert done.code == 1, (words, done)
        error = done.json["error"]
        assert error["code"] == code, error
        assert error["message"]
        assert error["hint"]
        assert "\n" not in error["message"] + error["hint"]
    assert await owned(up) == before
    async with await up.chain() as chain:
        stake = await chain.contracts.stake_vault.stake_of(up.ready["wallet_address"])
    assert stake.active == 0
    plain = await efedllm(up, *client, "--model", "0xdead")
    assert (plain.code, plain.out, len(plain.err.splitlines())) == (1, "", 1)
    assert plain.err.startswith("error: ")


async def test_a_wallet_without_gas_money_or_without_efed(up: Up, tmp_path: Path) -> None:
    secret = {"EFEDLLM_PASSWORD": "secret"}
    wallet = tmp_path / "new.json"
    made = await efedllm(up, "wallet", "new", "--light", "--keystore", str(wallet), "--json", **secret)
    home = ("--home", str(up.home), "--keystore", str(wallet), "--json")
    done = await efedllm(up, "generate", PROMPT, *home, **secret)
    assert (done.code, done.json["error"]["code"]) == (1, "insufficient-balance")
    async with await up.chain(0) as chain:
        await chain.contracts.efed_token.transfer(made.json["address"], 5 * WEI)
    for words in (("generate", PROMPT), ("wallet", "deposit", "1")):
        done = await efedllm(up, *words, *home, **secret)
        error = done.json["error"]
        assert (done.code, error["code"]) == (1, "insufficient-funds")
        assert made.json["address"] in error["message"]
        assert "Send ETH" in error["hint"]
    held = (await efedllm(up, "wallet", "balance", *home, **secret)).json
    assert (held["efed"], held["escrow"], held["in_sessions"]) == (5 * WEI, 0, 0)


async def test_an_rpc_server_that_is_away_for_a_while_costs_nothing_twice(up: Up) -> None:
    proxy = DropProxy(up.ready["rpc_url"])
    await proxy.start()
    keys = up.home / "keys"
    account = ("--keystore", str(keys / "wallet.json"), "--password-file", str(keys / "password"))
    network = ("--rpc", proxy.url, "--deployment", str(up.ready["deployment"]))
    flags = ("--home", str(up.home), "--json", *network, *account)
    try:
        async with await up.chain() as chain:
            opened = len(await chain.history("SessionEscrow", "SessionOpened"))
            held = await chain.token_balance(up.ready["wallet_address"])
            # The answers to the first transactions get lost; then nothing answers for a while.
            proxy.mode, proxy.match, proxy.heal_after = "swallow", b"eth_sendRawTransaction", 2
            done = await efedllm(up, "generate", PROMPT, "--max-tokens", "4", "--new-session", "--deposit", "2", *flags)
            assert done.code == 0, done
            assert proxy.swallowed == 2
            proxy.refuse()
            asyncio.get_running_loop().call_later(3.0, setattr, proxy, "mode", "pass")
            again = await efedllm(up, "generate", PROMPT, "--max-tokens", "4", *flags)
            assert again.code == 0, again
            assert again.json["session_id"] == done.json["session_id"]
            assert len(await chain.history("SessionEscrow", "SessionOpened")) == opened + 1
            assert held - await chain.token_balance(up.ready["wallet_address"]) == 2 * WEI
    finally:
        await proxy.stop()


async def test_killed_or_interrupted_it_leaves_nothing_running_and_resumes(up: Up) -> None:
    before = await up.facts()
    assert before["stakes"] == [200 * WEI, 200 * WEI, 100 * WEI]
    assert len(up.left()) >= 4
    for number, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 0)):
        assert up.end(number) == code
        await eventually(up.is_gone, "every process is gone")
        gone = await efedllm(up, "wallet", "balance", "--home", str(up.home), "--json", EFEDLLM_RPC_BUDGET="1")
        assert gone.json["error"]["code"] == "rpc-down"
        assert "efedllm up" in gone.json["error"]["hint"]
        up.start()
        assert await up.facts() == before
        done = await efedllm(up, "generate", PROMPT, "--max-tokens", "4", "--home", str(up.home))
        assert done.code == 0, done.err
        before["wallet"] = (await up.facts())["wallet"]
