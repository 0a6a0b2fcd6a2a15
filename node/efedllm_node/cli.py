"""Run a staking node and look after its stake, registration and earnings."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from efedllm import logs
from efedllm.chain import Chain, Deployment, format_amount, keystore, parse_amount
from efedllm.chain.connection import LOCAL_CHAIN_IDS
from efedllm.commitments.eip712 import parse_hex
from efedllm.errors import ConfigError, EfedError, ProtocolError
from efedllm.settings import Device, Settings, local_members
from efedllm.sizes import parse_size
from efedllm_node.config import Compute
from efedllm_node.epoch.status import show_all, status_of
from efedllm_node.flags import (
    CanaryClients,
    Credit,
    DeploymentFile,
    Endpoint,
    Home,
    Json,
    Keystore,
    Layers,
    Listen,
    ModelId,
    Models,
    NetworkHome,
    PasswordFile,
    Price,
    Ram,
    Retire,
    Rpc,
    Stake,
)

if TYPE_CHECKING:
    from efedllm_node.config import NodeConfig

app = typer.Typer(help="Serve layers of a model for pay.", no_args_is_help=True)


@dataclass(frozen=True)
class Account:
    """The flags every command shares."""

    rpc: str | None
    deployment: Path | None
    keystore: Path | None
    password_file: Path | None
    home: Path | None = None
    ram: str | None = None

    def settings(self) -> Settings:
        """Flags over environment over files."""
        settings = Settings.load(
            home=self.home,
            rpc_url=self.rpc,
            deployment=self.deployment,
            keystore=self.keystore,
            password_file=self.password_file,
            ram=self.ram,
        )
        logs.setup(settings.log_level, settings.log_format)
        return settings


@asynccontextmanager
async def _connected(account: Account) -> AsyncIterator[Chain]:
    settings = account.settings()
    deployment = Deployment.load(settings.need_deployment())
    password = keystore.read_password(settings.password_file)
    key = await asyncio.to_thread(keystore.load, settings.need_keystore(), password)
    async with await Chain.connect(settings.need_rpc(), deployment, key, budget=settings.rpc_budget) as chain:
        yield chain


def _run(work: Callable[[], Awaitable[int]], as_json: bool) -> None:
    """Run a command; an expected failure becomes one line and exit code 1."""

    async def main() -> int:
        return await work()

    try:
        code = asyncio.run(main())
    except EfedError as error:
        if as_json:
            print(json.dumps({"error": {"code": error.code, "message": error.message, "hint": error.hint}}))
        else:
            print(f"error: {error.message} {error.hint}".rstrip(), file=sys.stderr)
        code = 1
    raise typer.Exit(code)


def _show(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(result))
        return
    table = Table(show_header=False, box=None)
    for name, value in result.items():
        table.add_row(name.replace("_", " "), "-" if value is None else str(value))
    Console(highlight=False).print(table)


def parse_layers(text: str) -> tuple[int, int]:
    """(lo, hi) of "LO:HI". Raises ConfigError "bad-layers"."""
    lo, separator, hi = text.partition(":")
    if not separator or not (lo.isascii() and lo.isdigit() and hi.isascii() and hi.isdigit()) or int(lo) >= int(hi):
        raise ConfigError("bad-layers", f"{text!r} is no layer range.", "Use --layers LO:HI, for example 0:4.")
    return int(lo), int(hi)


def parse_listen(text: str) -> tuple[str, int]:
    """(host, port) of "HOST:PORT", the host in brackets if it is IPv6. Raises ConfigError "bad-listen"."""
    host, separator, port = text.rpartition(":")
    if not separator or not host or not (port.isascii() and port.isdigit()) or int(port) > 0xFFFF:
        raise ConfigError("bad-listen", f"{text!r} is no address to listen on.", "Use --listen HOST:PORT.")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _model_id(text: str | None) -> bytes | None:
    if text is None:
        return None
    try:
        return parse_hex(text, "model id", 32)
    except ProtocolError as error:
        raise ConfigError("bad-model-id", f"{text!r} is no model id.", "Use 0x and 64 hex digits.") from error


@app.command()
def run(
    rpc: Rpc = None,
    deployment: DeploymentFile = None,
    key: Keystore = None,
    password_file: PasswordFile = None,
    model_id: ModelId = None,
    layers: Layers = None,
    price: Price = None,
    model: Models = None,
    listen: Listen = "127.0.0.1:0",
    endpoint: Endpoint = None,
    home: Home = None,
    stake: Stake = None,
    credit_tokens: Credit = 64,
    retire: Retire = False,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Compute threads.")] = 1,
    compute: Annotated[
        Compute,
        typer.Option("--compute", help="Dtype of a float model. bfloat16 is declared in every commitment."),
    ] = "float32",
    device: Annotated[
        Device, typer.Option("--device", help="Where a causal model computes; --ram is then the GPU's.")
    ] = "cpu",
    ram: Ram = None,
    canary_client: CanaryClients = None,
    as_json: Json = False,
) -> None:
    """Stake, register, serve. Prints one JSON line when ready; SIGTERM drains, a second one stops at once."""

    async def work() -> int:
        from efedllm_node.app import run_node

        account = Account(rpc, deployment, key, password_file, ram=ram)
        config = make_config(
            account, model_id, layers, price, model, listen, endpoint, home, stake, credit_tokens, retire, threads
        )
        return await run_node(
            replace(config, compute=compute, device=device, canary_clients=tuple(canary_client or ()))
        )

    _run(work, as_json)


def make_config(
    account: Account,
    model_id: str | None,
    layers: str | None,
    price: int | None,
    models: list[str] | None,
    listen: str,
    endpoint: str | None,
    home: Path | None,
    stake: str | None,
    credit_tokens: int,
    retire: bool,
    threads: int,
) -> NodeConfig:
    """The configuration that flags describe. Raises ConfigError."""
    from efedllm_node.config import NodeConfig

    settings = account.settings()
    path = settings.need_deployment()
    host, port = parse_listen(listen)
    if not models:
        raise ConfigError("no-source", "No place to get the model from was given.", "Pass --model DIR or URL.")
    return NodeConfig(
        rpc_url=settings.need_rpc(),
        deployment=path,
        keystore=settings.need_keystore(),
        password=keystore.read_password(settings.password_file),
        home=(home or settings.home / "node").expanduser(),
        models=tuple(models),
        layers=None if layers is None else parse_layers(layers),
        model_id=_model_id(model_id or settings.model_id),
        price=price,
        listen_host=host,
        listen_port=port,
        endpoint=endpoint,
        stake=None if stake is None else parse_amount(stake),
        credit_tokens=credit_tokens,
        threads=threads,
        ram=None if settings.ram is None else parse_size(settings.ram),
        rpc_budget=settings.rpc_budget,
        retire=retire,
        light_keys=Deployment.load(path).chain_id in LOCAL_CHAIN_IDS,
    )


@app.command()
def register(
    endpoint: Annotated[str, typer.Option("--endpoint", metavar="URL", help="http://HOST:PORT of the node.")],
    layers: Layers = None,
    price: Price = None,
    model_id: ModelId = None,
    model: Models = None,
    stake: Stake = None,
    home: Home = None,
    rpc: Rpc = None,
    deployment: DeploymentFile = None,
    key: Keystore = None,
    password_file: PasswordFile = None,
    as_json: Json = False,
) -> None:
    """Stake and register without serving yet; `node run` does both as well."""

    async def work() -> int:
        from efedllm.models.source import WeightSource
        from efedllm_node.epoch.registration import Offer, ensure_registered, ensure_stake, terms
        from efedllm_node.home import load_signer

        account = Account(rpc, deployment, key, password_file)
        config = make_config(
            account, model_id, layers, price, model, "127.0.0.1:0", endpoint, home, stake, 64, False, 1
        )
        async with _connected(account) as chain:
            known = await terms(chain, config)
            manifest = await WeightSource(config.models).manifest(known.model.weights_root, known.model.manifest_hash)
            await asyncio.to_thread(config.home.mkdir, parents=True, exist_ok=True, mode=0o700)
            signer = await asyncio.to_thread(load_signer, config.home, config.password, config.light_keys)
            staked = await ensure_stake(chain, known.lo, known.hi, config.stake)
            shard_root = manifest.shard_root(known.lo, known.hi)
            offer = Offer(known.model.model_id, known.lo, known.hi, known.price, signer.address, shard_root, endpoint)
            actions = await ensure_registered(chain, offer)
            _show(
                {
                    "address": chain.account_address,
                    "signer": signer.address,
                    "staked": format_amount(staked),
                    "actions": ", ".join(action.value for action in actions) or "none: it is registered so already",
                },
                as_json,
            )
        return 0

    _run(work, as_json)


@app.command()
def status(
    rpc: Rpc = None,
    deployment: DeploymentFile = None,
    key: Keystore = None,
    home: NetworkHome = None,
    as_json: Json = False,
) -> None:
    """Registration, stake, trust and earnings: of one node, or of all nodes of a local network. Needs no password."""

    async def work() -> int:
        settings = Account(rpc, deployment, key, None, home).settings()
        network = Deployment.load(settings.need_deployment())
        members = local_members(settings, "nodes")
        address = "" if members else keystore.address_of(settings.need_keystore())
        async with await Chain.connect(settings.need_rpc(), network, budget=settings.rpc_budget) as chain:
            time = await chain.now()
            if not members:
                _show(await status_of(chain, address, time, as_json), as_json)
                return 0
            found = await asyncio.gather(*(status_of(chain, member.address, time, as_json) for member in members))
        nodes = [{"name": member.name} | status for member, status in zip(members, found, strict=True)]
        if as_json:
            _show({"epoch": time.epoch, "nodes": nodes}, as_json)
        else:
            show_all(nodes, time.epoch)
        return 0

    _run(work, as_json)


@app.command()
def unstake(
    amount: Annotated[str | None, typer.Argument(help="EFED to unbond; everything when left out.")] = None,
    retire: Annotated[bool, typer.Option("--retire", help="Leave the registry first.")] = False,
    rpc: Rpc = None,
    deployment: DeploymentFile = None,
    key: Keystore = None,
    password_file: PasswordFile = None,
    home: NetworkHome = None,
    as_json: Json = False,
) -> None:
    """Begin to unbond stake; it can be withdrawn after the unbonding period."""

    async def work() -> int:
        async with _connected(Account(rpc, deployment, key, password_file, home)) as chain:
            me = chain.account_address
            info = await chain.node(me)
            wei = info.stake_active if amount is None else parse_amount(amount)
            if wei == 0:
                raise ConfigError("nothing-staked", f"{me} has no active stake.", "See `efedllm node status`.")
            if wei > info.stake_active:
                raise ConfigError(
                    "not-enough-stake",
                    f"{format_amount(wei)} is more than the active stake of {format_amount(info.stake_active)}.",
                    "Unbond less.",
                )
            if retire and info.status in (1, 2):
                await chain.send("NodeRegistry", "retire")
            await chain.send("StakeVault", "unbond", wei)
            stake = await chain.call("StakeVault", "stakeOf", me)
            _show({"unbonding": format_amount(int(stake.unbonding)), "withdrawable_at": int(stake.readyAt)}, as_json)
        return 0

    _run(work, as_json)


@app.command()
def withdraw(
    rpc: Rpc = None,
    deployment: DeploymentFile = None,
    key: Keystore = None,
    password_file: PasswordFile = None,
    home: NetworkHome = None,
    as_json: Json = False,
) -> None:
    """Take unbonded stake back to the account."""

    async def work() -> int:
        async with _connected(Account(rpc, deployment, key, password_file, home)) as chain:
            me = chain.account_address
            wei = int((await chain.call("StakeVault", "stakeOf", me)).unbonding)
            if wei == 0:
                raise ConfigError("nothing-unbonding", f"{me} has no unbonding stake.", "Use `efedllm node unstake`.")
            await chain.send("StakeVault", "withdraw")
            _show({"withdrawn": format_amount(wei), "balance": format_amount(await chain.token_balance(me))}, as_json)
        return 0

    _run(work, as_json)


@app.command()
def claim(
    rpc: Rpc = None,
    deployment: DeploymentFile = None,
    key: Keystore = None,
    password_file: PasswordFile = None,
    home: NetworkHome = None,
    as_json: Json = False,
) -> None:
    """Claim epoch rewards and withdraw fees now; a running node does so by itself."""

    async def work() -> int:
        from efedllm_node.epoch.rewards import claimable_epochs

        async with _connected(Account(rpc, deployment, key, password_file, home)) as chain:
            me = chain.account_address
            rewards = await claimable_epochs(chain, await chain.now(), me)
            if rewards:
                await chain.send("RewardPool", "claim", list(rewards))
            owed = int(await chain.call("SessionEscrow", "owedOf", me))
            if owed:
                await chain.send("SessionEscrow", "withdrawFees", me)
            _show(
                {
                    "epochs": list(rewards) if as_json else ", ".join(map(str, rewards)) or "none",
                    "rewards": format_amount(sum(rewards.values())),
                    "fees": format_amount(owed),
                    "balance": format_amount(await chain.token_balance(me)),
                },
                as_json,
            )
        return 0

    _run(work, as_json)
