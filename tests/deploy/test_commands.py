"""The commands as a person calls them: exit codes, JSON, one-line errors. Against a real chain."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from efedllm.chain import Deployment, keystore
from efedllm_client.cli.main import main
from efedllm_deploy.local import dev_account, free_port


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    returncode: int
    stdout: str
    stderr: str


class Command:
    """Runs the `efedllm` command line in this process, in an environment of nobody."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys = capsys
        self._monkeypatch = monkeypatch
        for name in [name for name in os.environ if name.startswith("EFEDLLM_")]:
            monkeypatch.delenv(name)

    def __call__(self, *words: str, env: dict[str, str] | None = None) -> Done:
        with self._monkeypatch.context() as patch:
            for name, value in (env or {}).items():
                patch.setenv(name, value)
            self._capsys.readouterr()
            with pytest.raises(SystemExit) as ended:
                main(words)
        out = self._capsys.readouterr()
        return Done(int(ended.value.code or 0), out.out, out.err)


@pytest.fixture
def efedllm(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command line."""
    return Command(capsys, monkeypatch)


def error_of(done: Done) -> dict[str, Any]:
    """The error object of a failed command with --json."""
    assert done.returncode == 1, done.stderr
    assert done.stdout, done.stderr
    error: dict[str, Any] = json.loads(done.stdout)["error"]
    return error


def test_deploy_twice_from_a_keystore(efedllm: Command, ganache: str, tmp_path: Path) -> None:
    keystore.create(tmp_path / "k.json", "pw", light=True, private_key=bytes(dev_account().key))
    (tmp_path / "pw").write_text("pw\n")
    words = ["deploy", "--rpc", ganache, "--out", str(tmp_path / "out"), "--keystore", str(tmp_path / "k.json")]
    words += ["--password-file", str(tmp_path / "pw"), "--chain-id", "1337"]
    steps = 15  # ten contracts and their five grants
    first = json.loads(efedllm(*words, "--json").stdout)
    assert (first["deployed"], first["verified"], first["chain_id"]) == (steps, 0, 1337)
    assert Deployment.load(first["file"]).contracts["RewardPool"].address == first["contracts"]["RewardPool"]
    assert all(gas > 0 for gas in first["gas"].values())
    again = efedllm(*words)
    assert again.returncode == 0
    assert again.stdout.strip() == first["file"]
    assert "found  EfedToken" in again.stderr
    second = json.loads(efedllm(*words, "--json").stdout)
    assert (second["deployed"], second["verified"], second["gas"]) == (0, steps, {})


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--chain-id", "5"], "wrong-chain", "not 5"),
        (["--profile", "nonsense"], "no-profile", "nonsense"),
        (["--keystore", "/nowhere/k.json", "--password-file", "/dev/null"], "no-keystore", "/nowhere/k.json"),
        (["--admin", "0x12"], "bad-address", "--admin 0x12"),
    ],
)
def test_deploy_errors(efedllm: Command, ganache: str, tmp_path: Path, words: list[str], code: str, told: str) -> None:
    done = efedllm("deploy", "--rpc", ganache, "--out", str(tmp_path), "--json", *words)
    error = error_of(done)
    assert error["code"] == code
    assert told in error["message"]
    assert not any(tmp_path.iterdir())


def test_deploy_without_a_chain(efedllm: Command, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    error = error_of(efedllm("deploy", "--rpc", url, "--json", env={"EFEDLLM_RPC_BUDGET": "0.3"}))
    assert (error["code"], error["hint"]) == ("rpc-down", "Start it (a local network: `efedllm up`), or check --rpc.")
    error = error_of(efedllm("deploy", "--json", env={"EFEDLLM_HOME": str(tmp_path)}))
    assert error["code"] == "no-network"


def test_wrong_password_is_one_line(efedllm: Command, ganache: str, tmp_path: Path) -> None:
    keystore.create(tmp_path / "k.json", "right", light=True)
    words = ["deploy", "--rpc", ganache, "--out", str(tmp_path / "out"), "--keystore", str(tmp_path / "k.json")]
    done = efedllm(*words, env={"EFEDLLM_PASSWORD": "hunter2"})
    assert done.returncode == 1
    assert done.stderr.strip().startswith("error: The password does not open")
    assert "Traceback" not in done.stderr
    assert "hunter2" not in done.stderr + done.stdout


def test_model_commands_on_folders_that_are_none(efedllm: Command, tmp_path: Path) -> None:
    assert error_of(efedllm("model", "inspect", str(tmp_path), "--json"))["code"] == "not-published"
    assert (
        error_of(efedllm("model", "serve", "--dir", str(tmp_path), "--listen", "x", "--json"))["code"] == "bad-listen"
    )
    assert error_of(efedllm("model", "serve", "--dir", str(tmp_path), "--json"))["code"] == "not-published"
    words = ["model", "publish", "--dir", str(tmp_path), "--json"]
    assert error_of(efedllm(*words, env={"EFEDLLM_HOME": str(tmp_path)}))["code"] == "no-network"


def test_homes_that_cannot_be_used(efedllm: Command, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("precious")
    for words, code in (
        (("up", "--home", str(file)), "bad-home"),
        (("demo", "--home", str(file)), "not-a-demo"),
        (("wallet", "new", "--light", "--home", str(file)), "bad-path"),
        (("up", "--home", "/proc/nowhere"), "bad-home"),
    ):
        error = error_of(efedllm(*words, "--json", env={"EFEDLLM_PASSWORD": "pw"}))
        assert error["code"] == code
        assert words[-1] in error["message"]
        assert error["hint"]
    assert file.read_text() == "precious"


def test_up_and_demo_refuse_chains_they_cannot_use(efedllm: Command, tmp_path: Path) -> None:
    words = ["--home", str(tmp_path / "h"), "--json"]
    assert error_of(efedllm("up", "--chain", "geth", *words))["code"] == "bad-options"
    assert error_of(efedllm("demo", "--chain", "http://127.0.0.1:1", *words))["code"] == "bad-options"
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("x")
    assert error_of(efedllm("demo", "--home", str(tmp_path / "photos"), "--json"))["code"] == "not-a-demo"
