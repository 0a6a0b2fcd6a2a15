"""Which registry transactions are missing, and the operator's commands on a real chain."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
from typer.testing import CliRunner

from efedllm.chain.amounts import WEI
from efedllm.chain.types import NodeInfo
from efedllm.errors import ConfigError
from efedllm_node.cli import app
from efedllm_node.epoch.registration import Action, WantedRegistration, missing_stake, plan
from efedllm_node.options import parse_layers, parse_listen
from tests.node.node_kit import PASSWORD, Lab

SIGNER, OTHER = "0x" + "a" * 40, "0x" + "b" * 40
OFFER = WantedRegistration(b"m" * 32, 0, 4, 100, SIGNER, b"s" * 32, "http://here:1")
HERE = NodeInfo(
    address="0x" + "1" * 40,
    signer=SIGNER,
    lo=0,
    hi=4,
    price_per_ktok=100,
    status=1,
    model_id=b"m" * 32,
    shard_root=b"s" * 32,
    endpoint="http://here:1",
    stake_active=0,
    stake_unbonding=0,
    trust_ppm=0,
    standing=1,
    jailed_until=0,
    offences=0,
    owed=0,
)


@pytest.mark.parametrize(
    ("current", "actions"),
    [
        (HERE, ()),
        (replace(HERE, status=0), (Action.REGISTER,)),
        (replace(HERE, status=3, lo=7), (Action.REGISTER,)),
        (replace(HERE, price_per_ktok=99), (Action.UPDATE,)),
        (replace(HERE, signer=OTHER), (Action.UPDATE,)),
        (replace(HERE, endpoint="http://there:1"), (Action.ENDPOINT,)),
        (replace(HERE, status=2), (Action.RESUME,)),
        (
            replace(HERE, status=2, signer=OTHER, endpoint="x"),
            (Action.UPDATE, Action.ENDPOINT, Action.RESUME),
        ),
    ],
)
def test_only_what_differs_is_sent(current: NodeInfo, actions: tuple[Action, ...]) -> None:
    assert plan(current, OFFER) == actions


@pytest.mark.parametrize("change", [{"lo": 1}, {"hi": 5}, {"model_id": b"x" * 32}, {"shard_root": b"x" * 32}])
def test_other_layers_need_a_retirement_first(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(replace(HERE, **change), OFFER)
    assert caught.value.code == "other-registration"
    assert "--retire" in caught.value.hint


def test_stake_is_only_ever_added() -> None:
    assert missing_stake(active=50, wanted=80, minimum=40) == 30
    assert missing_stake(active=50, wanted=20, minimum=40) == 0
    assert missing_stake(active=50, wanted=None, minimum=40) == 0
    with pytest.raises(ConfigError) as caught:
        missing_stake(active=5, wanted=20, minimum=40)
    assert caught.value.code == "stake-too-low"


@pytest.mark.parametrize("text", ["", "4", "4:", ":4", "4:4", "5:4", "a:b", "-1:3", "\u0664:\u0665"])
def test_layer_ranges_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_layers(text)


def test_addresses_to_listen_on() -> None:
    assert parse_layers("0:4") == (0, 4)
    assert parse_listen("0.0.0.0:80") == ("0.0.0.0", 80)
    assert parse_listen("[::1]:80") == ("::1", 80)
    for text in ("80", ":80", "host:", "host:99999", "host:x"):
        with pytest.raises(ConfigError):
            parse_listen(text)


async def command(lab: Lab, index: int, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Exit code and JSON of a command of the node of a dev account."""
    config = await lab.config(index, (0, 8))
    password = lab.directory / "password"
    password.write_text(PASSWORD)
    flags = ("--rpc", lab.live.rpc_url, "--deployment", str(lab.live.path), "--keystore", str(config.keystore))
    secret = () if arguments[0] == "status" else ("--password-file", str(password))
    words = [*arguments, *flags, *secret, "--json"]
    result = await asyncio.to_thread(CliRunner().invoke, app, words)
    return result.exit_code, json.loads(result.stdout)


async def test_a_node_from_registration_to_withdrawal(lab: Lab) -> None:
    code, status = await command(lab, 1, "status")
    assert (code, status["status"], status["stake"]) == (0, "not registered", "0")
    offer = ("--layers", "0:8", "--price", "77", "--model-id", "0x" + lab.model_id.hex(), "--model", str(lab.model_dir))
    where = ("--endpoint", "http://127.0.0.1:7001", "--home", str(lab.directory / "home"))
    code, error = await command(lab, 1, "register", *offer, *where, "--stake", "1")
    assert (code, error["error"]["code"]) == (1, "stake-too-low")
    code, done = await command(lab, 1, "register", *offer, *where, "--stake", "100")
    assert (code, done["actions"], done["staked"]) == (0, "register", "100 EFED")
    code, done = await command(lab, 1, "register", *offer, *where, "--stake", "100")
    assert (code, done["actions"].startswith("none"), done["staked"]) == (0, True, "0 EFED")
    code, status = await command(lab, 1, "status")
    assert (status["status"], status["layers"], status["price_per_ktok_gwei"]) == ("active", "0:8", 77)
    assert (status["stake"], status["standing"]) == (str(100 * WEI), "probation")
    code, error = await command(lab, 1, "withdraw")
    assert (code, error["error"]["code"]) == (1, "nothing-unbonding")
    code, error = await command(lab, 1, "unstake", "101")
    assert (code, error["error"]["code"]) == (1, "not-enough-stake")
    code, done = await command(lab, 1, "unstake", "--retire")
    assert (code, done["unbonding"]) == (0, "100 EFED")
    code, error = await command(lab, 1, "withdraw")
    assert (code, error["error"]["code"]) == (1, "revert:NotReady")
    await lab.live.clock(lab.chain).advance_to(done["withdrawable_at"] + 1)
    code, done = await command(lab, 1, "withdraw")
    assert (code, done["withdrawn"]) == (0, "100 EFED")
    code, status = await command(lab, 1, "status")
    assert (status["status"], status["stake"], status["unbonding"]) == ("retired", "0", "0")
    code, done = await command(lab, 1, "claim")
    assert (code, done["epochs"], done["fees"]) == (0, [], "0 EFED")
