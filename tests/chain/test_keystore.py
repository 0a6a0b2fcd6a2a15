"""Keystores, passwords, settings, amounts: what people type."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from efedllm.chain import keystore
from efedllm.chain.amounts import WEI, cost_of_tokens, format_amount, parse_amount
from efedllm.errors import ConfigError
from efedllm.settings import Settings


def test_round_trip_and_file_mode(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "a.json"
    address = keystore.create(path, "correct horse", light=True)
    assert keystore.load(path, "correct horse").address == address == keystore.address_of(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "correct horse" not in path.read_text()


def test_given_key_is_kept(tmp_path: Path) -> None:
    keystore.create(tmp_path / "k.json", "pw", light=True, private_key=b"\x01" * 32)
    assert bytes(keystore.load(tmp_path / "k.json", "pw").key) == b"\x01" * 32


def test_wrong_password(tmp_path: Path) -> None:
    keystore.create(tmp_path / "k.json", "right", light=True)
    with pytest.raises(ConfigError) as caught:
        keystore.load(tmp_path / "k.json", "wrong")
    assert caught.value.code == "wrong-password"
    assert "--password-file" in caught.value.hint


def test_never_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "k.json"
    keystore.create(path, "pw", light=True)
    before = path.read_bytes()
    with pytest.raises(ConfigError) as caught:
        keystore.create(path, "pw", light=True)
    assert caught.value.code == "keystore-exists"
    assert path.read_bytes() == before


@pytest.mark.parametrize("text", ["", "{}", "[]", "not json", '{"crypto": {}, "version": 3}', '{"version": 9}'])
def test_damaged_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "k.json"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        keystore.load(path, "pw")
    assert caught.value.code == "bad-keystore"


def test_missing_file_and_empty_password(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        keystore.load(tmp_path / "none.json", "pw")
    assert caught.value.code == "no-keystore"
    with pytest.raises(ConfigError) as caught:
        keystore.create(tmp_path / "k.json", "")
    assert caught.value.code == "empty-password"


def test_password_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pw").write_text("from file\n")
    monkeypatch.setenv(keystore.PASSWORD_VARIABLE, "from env")
    assert keystore.read_password(tmp_path / "pw") == "from file"
    assert keystore.read_password(None) == "from env"
    monkeypatch.delenv(keystore.PASSWORD_VARIABLE)
    with pytest.raises(ConfigError) as caught:
        keystore.read_password(None, prompt=False)
    assert caught.value.code == "no-password"
    with pytest.raises(ConfigError):
        keystore.read_password(tmp_path / "missing")


@pytest.mark.parametrize(
    ("text", "wei"),
    [("1.5", 3 * WEI // 2), ("0", 0), ("0.000000000000000001", 1), ("1_000", 1000 * WEI), (" 2 ", 2 * WEI)],
)
def test_amounts(text: str, wei: int) -> None:
    assert parse_amount(text) == wei
    assert parse_amount(format_amount(wei, "")) == wei


@pytest.mark.parametrize("text", ["", "-1", "1,5", "1e3", "0x10", ".5", "1.", "1.0000000000000000001", "nan"])
def test_amounts_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_amount(text)
    assert caught.value.code == "bad-amount"


def test_cost_rounds_up() -> None:
    assert cost_of_tokens(1000, 7) == 7 * 10**9
    assert cost_of_tokens(1, 1) == 10**6
    assert cost_of_tokens(0, 5) == 0


def test_settings_order_flags_env_toml_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "network.json").write_text(
        json.dumps({"rpc_url": "http://net", "deployment": "d.json", "wallet": "w.json", "password_file": "p"})
    )
    config = tmp_path / "efedllm.toml"
    config.write_text(f'home = "{home}"\nlog_level = "debug"\n')
    found = Settings.load(config)
    assert (found.rpc_url, found.keystore, found.log_level) == ("http://net", Path("w.json"), "debug")
    monkeypatch.setenv("EFEDLLM_LOG_LEVEL", "error")
    assert Settings.load(config).log_level == "error"
    assert Settings.load(config, log_level="warning", rpc_url=None).log_level == "warning"
    # Another chain than the local network's: its wallet and deployment do not apply.
    elsewhere = Settings.load(config, rpc_url="http://other")
    assert (elsewhere.rpc_url, elsewhere.keystore, elsewhere.deployment) == ("http://other", None, None)
    # One's own keystore must not be opened with the local network's password.
    assert Settings.load(config, keystore=Path("mine.json")).password_file is None


def test_settings_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings.load(home=tmp_path, log_level="loud")
    assert "log_level" in caught.value.message
    bad = tmp_path / "bad.toml"
    bad.write_text("home = ")
    with pytest.raises(ConfigError) as caught:
        Settings.load(bad)
    assert caught.value.code == "bad-settings"
    with pytest.raises(ConfigError) as caught:
        Settings.load(home=tmp_path).need_rpc()
    assert "efedllm up" in caught.value.hint
