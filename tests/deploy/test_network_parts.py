"""LocalNetwork without its node and verifier processes: chain, contracts, model, accounts, files."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import aiohttp
import pytest

from efedllm.chain import Chain, Deployment, keystore
from efedllm.chain.amounts import WEI
from efedllm.chain.ledger import read_ledger
from efedllm.chain.readers import Readers
from efedllm.errors import ChainError, ConfigError
from efedllm.models.manifest import Manifest
from efedllm.settings import Settings
from efedllm_deploy.accounts import GAS_MONEY, Keys, fund, replace_slashed
from efedllm_deploy.bundled import ModelChoice, cached
from efedllm_deploy.demo_cli import wipe
from efedllm_deploy.homefiles import lock_home
from efedllm_deploy.layout import NetworkOptions, NodePlacement, placements
from efedllm_deploy.network import LocalNetwork
from efedllm_deploy.process import ProcessError, spawn
from efedllm_deploy.publish import model_id, publish
from efedllm_deploy.serve import model_app, parse_listen, start_server
from tests.deploy.test_local_chain import alive, gone
from tests.live_network import LiveNetwork, eventually
from tests.model_fixtures import use_model


@pytest.fixture
def model(default_model: Path) -> Path:
    return default_model


def options(home: Path, model: Path, **changes: object) -> NetworkOptions:
    """A network whose model is compressed already."""
    if not (home / "model").exists():
        use_model(home, model)
    return NetworkOptions(home=home, processes=False, **changes)  # type: ignore[arg-type]


async def test_start_writes_what_clients_need_and_a_second_start_pays_nothing(tmp_path: Path, model: Path) -> None:
    home = tmp_path / "home"
    async with LocalNetwork(options(home, model)) as network:
        first = network.describe()
        assert json.loads((home / "network.json").read_text()) == first
        everyone = [network.wallet, *(member.purse for member in network.nodes + network.verifiers)]
        assert [await network.chain.token_balance(purse.address) for purse in everyone] == [
            purse.tokens for purse in everyone
        ]
        for purse in everyone:
            assert await network.chain.rpc.integer("eth_getBalance", [purse.address, "latest"]) == GAS_MONEY
        assert [(m.place.lo, m.place.hi) for m in network.nodes if m.place] == [(0, 4), (4, 8), (0, 4), (4, 8)]
        settings = Settings.load(home=home)
        assert settings.need_rpc() == network.rpc_url
        client = keystore.load(settings.need_keystore(), keystore.read_password(settings.password_file))
        assert client.address == network.wallet.address
        ledger = await read_ledger(network.chain)
        assert ledger.ok, ledger.problems
        nonce = await network.chain.rpc.integer("eth_getTransactionCount", [network.chain.account_address, "latest"])
        manifest = Manifest.load(network.model_dir)
        registered = await network.chain.model(network.model_id)
        assert (registered.weights_root, registered.manifest_hash) == (manifest.root, manifest.hash())
    async with LocalNetwork(options(home, model)) as network:
        again = network.describe()
        assert {**again, "pid": 0} == {**first, "pid": 0}
        deployer = network.chain.account_address
        assert await network.chain.rpc.integer("eth_getTransactionCount", [deployer, "latest"]) == nonce


async def test_one_network_per_home(tmp_path: Path, model: Path) -> None:
    async with LocalNetwork(options(tmp_path / "home", model, nodes=0, verifiers=0, chain="anvil")):
        with pytest.raises(ConfigError) as caught:
            await LocalNetwork(options(tmp_path / "home", model)).start()
        assert caught.value.code == "home-busy"


async def test_a_failed_start_leaves_no_chain_behind(tmp_path: Path, model: Path) -> None:
    network = LocalNetwork(options(tmp_path / "home", model, profile="nonsense"))
    with pytest.raises(ConfigError) as caught:
        await network.start()
    assert caught.value.code == "no-profile"
    assert network._parts.local is not None
    assert not alive(network._parts.local.child.pid)
    # The home is free again.
    async with LocalNetwork(options(tmp_path / "home", model, nodes=0, verifiers=0)):
        pass


async def test_a_model_that_cannot_be_compressed_stops_the_start(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    network = LocalNetwork(NetworkOptions(tmp_path / "home", model=ModelChoice(str(broken)), processes=False))
    with pytest.raises(ProcessError) as caught:
        await network.start()
    assert "compress.log" in caught.value.hint


async def test_a_running_chain_by_its_address(anvil: str, tmp_path: Path, model: Path) -> None:
    async with LocalNetwork(options(tmp_path / "home", model, chain=anvil, nodes=2, verifiers=1)) as network:
        assert network.rpc_url == anvil
        assert [(m.place.lo, m.place.hi) for m in network.nodes if m.place] == [(0, 4), (4, 8)]
        start = await network.chain.block_number()

        async def ticks() -> bool:
            return await network.chain.block_number() > start

        await eventually(ticks, "a block without a transaction")


def test_options_that_do_not_fit(tmp_path: Path) -> None:
    for changes in ({"chain": "geth"}, {"nodes": -1}, {"verifiers": 1000}):
        with pytest.raises(ConfigError) as caught:
            NetworkOptions(tmp_path, **changes).check()
        assert caught.value.code == "bad-options"


@pytest.mark.parametrize(("layers", "nodes"), [(8, 4), (8, 3), (7, 2), (8, 1), (1, 3), (12, 0)])
def test_places_cover_the_model(layers: int, nodes: int) -> None:
    found = placements(layers, nodes)
    assert len(found) == nodes
    covered = {layer for place in found for layer in range(place.lo, place.hi)}
    assert covered == (set(range(layers)) if nodes else set())
    assert all(place.lo < place.hi for place in found)


def test_places_of_four_nodes() -> None:
    assert placements(8, 4) == [
        NodePlacement(0, 4, 10**9),
        NodePlacement(4, 8, 10**9),
        NodePlacement(0, 4, 12 * 10**8),
        NodePlacement(4, 8, 12 * 10**8),
    ]


def test_cached_model_is_used_only_for_the_same_choice(model: Path) -> None:
    assert cached(ModelChoice(), model / "model") is not None
    assert cached(ModelChoice(keep=0.5), model / "model") is None
    assert cached(ModelChoice(), model / "elsewhere") is None


async def test_publishing_twice_registers_once(deployed: LiveNetwork, chain: Chain, model: Path) -> None:
    first = await publish(chain, model / "model", "http://x")
    second = await publish(chain, model / "model", "http://y")
    assert first.tx
    assert not second.tx
    assert first.model_id == second.model_id
    assert second.uri == "http://x"
    assert len(await chain.models()) == 1
    async with await deployed.connect(1) as other:
        theirs = await publish(other, model / "model")
    assert theirs.model_id != first.model_id
    await chain.contracts.model_registry.deprecate(first.model_id)
    with pytest.raises(ChainError) as caught:
        await publish(chain, model / "model")
    assert caught.value.code == "model-deprecated"


def test_model_id_is_what_the_contract_computes() -> None:
    owner = "0x" + "11" * 20
    assert model_id(owner, b"\x02" * 32) != model_id(owner, b"\x03" * 32)


async def test_funding_twice_pays_once(deployed: LiveNetwork, chain: Chain, tmp_path: Path) -> None:
    keys = Keys(tmp_path, light=True)
    purses = [keys.purse("a", 5 * WEI), keys.purse("b", 7 * WEI)]
    await fund(chain, purses)
    await fund(chain, purses)
    assert [await chain.token_balance(purse.address) for purse in purses] == [5 * WEI, 7 * WEI]
    assert keys.purse("a", 5 * WEI) == purses[0]
    assert (tmp_path / "password").stat().st_mode & 0o077 == 0
    assert isinstance(chain, Readers)
    assert deployed.deployment == Deployment.load(deployed.path)


async def test_what_was_slashed_is_replaced_once(deployed: LiveNetwork, chain: Chain, tmp_path: Path) -> None:
    keys = Keys(tmp_path, light=True)
    purses = [keys.purse("a", 5 * WEI), keys.purse("b", 7 * WEI)]
    await fund(chain, purses)
    assert await replace_slashed(chain, purses) == []
    account = keystore.load(purses[0].path, keystore.read_password(purses[0].password_file))
    async with await Chain.connect(deployed.rpc_url, deployed.deployment, account) as slashed:
        await slashed.ensure_allowance("StakeVault", 3 * WEI)
        await slashed.contracts.stake_vault.stake(3 * WEI)
        assert await replace_slashed(chain, purses) == []
        await slashed.contracts.efed_token.burn(WEI)
    assert await replace_slashed(chain, purses) == ["a"]
    assert await replace_slashed(chain, purses) == []
    assert [await chain.token_balance(purse.address) for purse in purses] == [2 * WEI, 7 * WEI]


async def test_model_server_serves_the_manifests_files_and_nothing_else(model: Path) -> None:
    directory = model / "model"
    manifest = Manifest.load(directory)
    (directory / "private.txt").write_text("secret")
    runner, port = await start_server(model_app(directory, manifest), "127.0.0.1", 0)
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            async with session.get("/manifest.json") as answer:
                assert Manifest.parse(await answer.read()).hash() == manifest.hash()
            name = manifest.files[0].name
            async with session.get(f"/{name}", headers={"Range": "bytes=5-9"}) as answer:
                assert answer.status == 206
                assert await answer.read() == (directory / name).read_bytes()[5:10]
            for path in ("/private.txt", "/..%2fmodel.json", "/%2e%2e/log"):
                async with session.get(path) as answer:
                    assert answer.status == 404
        with pytest.raises(ConfigError) as caught:
            await start_server(model_app(directory, manifest), "127.0.0.1", port)
        assert caught.value.code == "port-in-use"
    finally:
        await runner.cleanup()
        (directory / "private.txt").unlink()


@pytest.mark.parametrize("text", ["", "8080", "host:", "host:x", "host:70000"])
def test_addresses_to_listen_on(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_listen(text)
    assert caught.value.code == "bad-listen"


def test_wiping_spares_the_model_and_refuses_foreign_folders(tmp_path: Path) -> None:
    home = tmp_path / "home"
    wipe(home)
    for name in ("chain", "keys", "model", "node-0", "verifier-12"):
        (home / name).mkdir(parents=True)
        (home / name / "x").write_text("x")
    (home / "network.json").write_text("{}")
    wipe(home)
    assert {item.name for item in home.iterdir()} == {"lock", "model"}


@pytest.mark.parametrize("name", ["a.jpg", "wallet.json", "logs.txt", "node-x"])
def test_wiping_refuses_a_folder_that_holds_anything_else(tmp_path: Path, name: str) -> None:
    home = tmp_path / "mine"
    (home / "logs").mkdir(parents=True)
    (home / "network.json").write_text("{}")
    (home / name).write_text("x")
    with pytest.raises(ConfigError) as caught:
        wipe(home)
    assert caught.value.code == "not-a-demo"
    assert name in caught.value.message
    assert {item.name for item in home.iterdir()} == {"logs", "network.json", name}


def test_wiping_refuses_keys_of_a_public_chain_and_what_is_no_folder(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "keys").mkdir(parents=True)
    (home / "network.json").write_text(json.dumps({"chain_id": 11155111}))
    for place in (home, home / "network.json"):
        with pytest.raises(ConfigError) as caught:
            wipe(place)
        assert caught.value.code == "not-a-demo"
    assert {item.name for item in home.iterdir()} == {"keys", "network.json"}


def test_wiping_refuses_a_network_that_runs(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "chain").mkdir(parents=True)
    with lock_home(home), pytest.raises(ConfigError) as caught:
        wipe(home)
    assert caught.value.code == "home-busy"
    assert (home / "chain").exists()
    wipe(home)
    assert not (home / "chain").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_up_ends_cleanly_on_a_signal(tmp_path: Path, model: Path, number: signal.Signals) -> None:
    home = tmp_path / "home"
    options(home, model)
    argv = [
        sys.executable,
        "-m",
        "efedllm_deploy.up_cli",
        "--home",
        str(home),
        "--nodes",
        "0",
        "--verifiers",
        "0",
        "--json",
    ]
    child = await spawn("up", argv, tmp_path / "log", pipe_stdout=True)
    ready = json.loads(await child.first_line(60, "before it was ready"))
    assert ready["event"] == "ready"
    chain_pids = children_of(child.pid)
    assert len(chain_pids) == 1
    os.kill(child.pid, number)
    async with asyncio.timeout(20):
        await child.process.wait()
    assert child.process.returncode == 0, child.tail()
    await eventually(lambda: gone(chain_pids[0]), "the chain is gone")
    await child.stop()


def children_of(pid: int) -> list[int]:
    """Processes that a process started from its main thread."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
