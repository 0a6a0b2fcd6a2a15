"""What a person sees: one line that says what to do, and a non-zero exit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest
import torch

from efedllm.chain import keystore
from efedllm.errors import ConfigError
from efedllm_verifier.__main__ import main
from efedllm_verifier.app import locked
from efedllm_verifier.config import VerifierConfig, parse_listen
from efedllm_verifier.metrics import Health, VerifierMetrics, serve

HAS_GPU = torch.cuda.is_available()

DEPLOYMENT = {
    "chain_id": 1337,
    "genesis": 1,
    "epoch_length": 60,
    "block": 0,
    "deployer": "0x" + "00" * 20,
    "contracts": {},
    "compiler": "0.8.30",
    "profile": "local",
}


@pytest.fixture
def flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Flags of a complete `run`, of which a test changes some; an empty value leaves one out."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EFEDLLM_RPC_BUDGET", "0.2")
    monkeypatch.delenv("EFEDLLM_PASSWORD", raising=False)
    keystore.create(tmp_path / "key.json", "right", light=True)
    (tmp_path / "password").write_text("right\n")
    (tmp_path / "wrong").write_text("wrong\n")
    (tmp_path / "1337.json").write_text(json.dumps(DEPLOYMENT))

    def make(**changes: str) -> list[str]:
        values = {
            "rpc": "http://127.0.0.1:1",
            "deployment": "1337.json",
            "keystore": "key.json",
            "password-file": "password",
            "home": "home",
        } | {name.replace("_", "-"): value for name, value in changes.items()}
        return [word for name, value in values.items() if value for word in (f"--{name}", value)]

    return make


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"rpc": ""}, "no-network"),
        ({"deployment": ""}, "no-network"),
        ({"deployment": "absent.json"}, "no-deployment"),
        ({"keystore": ""}, "no-keystore"),
        ({"keystore": "absent.json"}, "no-keystore"),
        ({"password_file": "wrong"}, "wrong-password"),
        ({"password_file": "absent"}, "no-password"),
        ({"stake": "much"}, "bad-amount"),
        ({"listen": "nowhere"}, "bad-listen"),
        ({"listen": "127.0.0.1:99999"}, "bad-listen"),
        ({"poll": "0"}, "bad-settings"),
        ({"cache": "0"}, "bad-settings"),
        pytest.param({"device": "cuda"}, "no-device", marks=pytest.mark.skipif(HAS_GPU, reason="has a GPU")),
        ({}, "bad-deployment"),
    ],
)
def test_a_bad_start_says_why(
    flags: Callable[..., list[str]], capsys: pytest.CaptureFixture[str], changes: dict[str, str], code: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["run", *flags(**changes), "--json"])
    assert stopped.value.code == 1
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == code
    assert error["message"]
    assert error["hint"]


def test_without_json_an_error_is_one_line(flags: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["run", *flags(password_file="wrong")])
    assert stopped.value.code == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1


def test_a_home_in_use_is_refused(
    flags: Callable[..., list[str]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with locked(tmp_path / "home"), pytest.raises(SystemExit):
        main(["run", *flags(), "--json"])
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "home-locked"


def test_status_needs_no_password_but_a_network(
    flags: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["status", *flags(password_file=""), "--json"])
    assert stopped.value.code == 1
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "rpc-down"


@pytest.mark.parametrize(("text", "address"), [("127.0.0.1:80", ("127.0.0.1", 80)), ("[::1]:0", ("::1", 0))])
def test_listen_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_listen(text) == address


def test_the_password_is_not_in_the_configurations_text(tmp_path: Path) -> None:
    config = VerifierConfig("http://x", tmp_path, tmp_path, "secret words", tmp_path)
    assert "secret" not in repr(config)
    with pytest.raises(ConfigError):
        VerifierConfig("http://x", tmp_path, tmp_path, "", tmp_path, fee_ref_tokens=0)


async def test_metrics_and_health_are_served() -> None:
    now = 0.0
    metrics, health = VerifierMetrics(), Health(10, lambda: now)
    runner, port = await serve(metrics, health, ("127.0.0.1", 0))
    metrics.epoch.set(7)
    seen = []
    try:
        async with aiohttp.ClientSession() as session:
            for beat, at in ((False, 0.0), (True, 0.0), (False, 9.0), (False, 10.0)):
                now = at
                if beat:
                    health.beat()
                async with session.get(f"http://127.0.0.1:{port}/healthz") as response:
                    seen.append(response.status)
            async with session.get(f"http://127.0.0.1:{port}/metrics") as response:
                text = await response.text()
        with pytest.raises(ConfigError) as caught:
            await serve(metrics, health, ("127.0.0.1", port))
        assert (caught.value.code, str(port) in caught.value.message) == ("port-in-use", True)
    finally:
        await runner.cleanup()
    assert seen == [503, 200, 200, 503]
    assert "efedllm_verifier_epoch 7.0" in text
