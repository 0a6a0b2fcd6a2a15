"""Run a staking node and look after its stake."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from efedllm.chain import Chain, Deployment, format_amount, keystore, parse_amount
from efedllm.cli import with_options
from efedllm.errors import ConfigError, EfedError
from efedllm.settings import Device, local_members
from efedllm_node.config import Compute
from efedllm_node.epoch.status import show_all, status_of
from efedllm_node.options import AccountOptions, ChainOptions, NetworkHome, NodeOptions

app = typer.Typer(help="Serve layers of a model for pay.", no_args_is_help=True)


@asynccontextmanager
async def _connected(account: AccountOptions, home: Path | None = None) -> AsyncIterator[Chain]:
    settings = account.settings(home)
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


@app.command()
@with_options
def run(
    account: AccountOptions,
    node: NodeOptions,
    listen: Annotated[
        str, typer.Option("--listen", metavar="HOST:PORT", help="Address to serve on; port 0 takes any.")
    ] = "127.0.0.1:0",
    endpoint: Annotated[
        str | None, typer.Option("--endpoint", metavar="URL", help="http://HOST:PORT as others reach this node.")
    ] = None,
    credit_tokens: Annotated[
        int, typer.Option("--credit-tokens", help="Tokens computed before they are paid for, beyond the prompt.")
    ] = 64,
    retire: Annotated[bool, typer.Option("--retire", help="Leave the registry when stopped.")] = False,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Compute threads.")] = 1,
    compute: Annotated[
        Compute,
        typer.Option("--compute", help="Dtype of a float model. bfloat16 is declared in every commitment."),
    ] = "float32",
    device: Annotated[
        Device, typer.Option("--device", help="Where a causal model computes; --ram is then the GPU's.")
    ] = "cpu",
    ram: Annotated[
        str | None,
        typer.Option(
            "--ram",
            metavar="SIZE",
            help="Memory for weights, caches and activations, such as 2GB; slower when they need more.",
        ),
    ] = None,
    contract_signers: Annotated[
        bool,
        typer.Option("--allow-contract-signers", help="Serve sessions whose signer was a contract when they opened."),
    ] = False,
) -> None:
    """Stake, register, serve. Prints one JSON line when ready; SIGTERM drains, a second one stops at once."""

    async def work() -> int:
        from efedllm_node.app import run_node

        return await run_node(
            node.config(
                account,
                listen=listen,
                ram=ram,
                endpoint=endpoint,
                credit_tokens=credit_tokens,
                retire=retire,
                threads=threads,
                compute=compute,
                device=device,
                allow_contract_signers=contract_signers,
            )
        )

    _run(work, account.as_json)


@app.command()
@with_options
def register(
    account: AccountOptions,
    node: NodeOptions,
    endpoint: Annotated[str, typer.Option("--endpoint", metavar="URL", help="http://HOST:PORT of the node.")],
) -> None:
    """Stake and register without serving yet; `node run` does both as well."""

    async def work() -> int:
        from efedllm.models.source import WeightSource
        from efedllm_node.epoch.registration import WantedRegistration, ensure_registered, ensure_stake, terms
        from efedllm_node.home import load_signer

        config = node.config(account, endpoint=endpoint)
        async with _connected(account) as chain:
            known = await terms(chain, config)
            manifest = await WeightSource(config.models).manifest(known.model.weights_root, known.model.manifest_hash)
            await asyncio.to_thread(config.home.mkdir, parents=True, exist_ok=True, mode=0o700)
            signer = await asyncio.to_thread(load_signer, config.home, config.password, config.light_keys)
            staked = await ensure_stake(chain, known.lo, known.hi, config.stake)
            wanted = WantedRegistration(
                known.model.model_id,
                known.lo,
                known.hi,
                known.price,
                signer.address,
                manifest.shard_root(known.lo, known.hi),
                endpoint,
            )
            actions = await ensure_registered(chain, wanted)
            _show(
                {
                    "address": chain.account_address,
                    "signer": signer.address,
                    "staked": format_amount(staked),
                    "actions": ", ".join(action.value for action in actions) or "none: it is registered so already",
                },
                account.as_json,
            )
        return 0

    _run(work, account.as_json)


@app.command()
@with_options
def status(account: ChainOptions, home: NetworkHome = None) -> None:
    """Registration, stake, trust and earnings: of one node, or of all nodes of a local network. Needs no password."""

    async def work() -> int:
        settings, as_json = account.settings(home), account.as_json
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

    _run(work, account.as_json)


@app.command()
@with_options
def unstake(
    account: AccountOptions,
    amount: Annotated[str | None, typer.Argument(help="EFED to unbond; everything when left out.")] = None,
    retire: Annotated[bool, typer.Option("--retire", help="Leave the registry first.")] = False,
    home: NetworkHome = None,
) -> None:
    """Begin to unbond stake; it can be withdrawn after the unbonding period."""

    async def work() -> int:
        async with _connected(account, home) as chain:
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
                await chain.contracts.node_registry.retire()
            await chain.contracts.stake_vault.unbond(wei)
            stake = await chain.contracts.stake_vault.stake_of(me)
            _show({"unbonding": format_amount(stake.unbonding), "withdrawable_at": stake.ready_at}, account.as_json)
        return 0

    _run(work, account.as_json)


@app.command()
@with_options
def withdraw(account: AccountOptions, home: NetworkHome = None) -> None:
    """Take unbonded stake back to the account."""

    async def work() -> int:
        async with _connected(account, home) as chain:
            me = chain.account_address
            wei = (await chain.contracts.stake_vault.stake_of(me)).unbonding
            if wei == 0:
                raise ConfigError("nothing-unbonding", f"{me} has no unbonding stake.", "Use `efedllm node unstake`.")
            await chain.contracts.stake_vault.withdraw()
            balance = await chain.token_balance(me)
            _show({"withdrawn": format_amount(wei), "balance": format_amount(balance)}, account.as_json)
        return 0

    _run(work, account.as_json)


@app.command()
@with_options
def claim(account: AccountOptions, home: NetworkHome = None) -> None:
    """Claim epoch rewards and withdraw fees now; a running node does so by itself."""

    async def work() -> int:
        from efedllm_node.epoch.rewards import claimable_epochs

        async with _connected(account, home) as chain:
            me = chain.account_address
            rewards = await claimable_epochs(chain, await chain.now(), me)
            if rewards:
                await chain.contracts.reward_pool.claim(list(rewards))
            owed = await chain.contracts.session_escrow.owed_of(me)
            if owed:
                await chain.contracts.session_escrow.withdraw_fees(me)
            _show(
                {
                    "epochs": list(rewards) if account.as_json else ", ".join(map(str, rewards)) or "none",
                    "rewards": format_amount(sum(rewards.values())),
                    "fees": format_amount(owed),
                    "balance": format_amount(await chain.token_balance(me)),
                },
                account.as_json,
            )
        return 0

    _run(work, account.as_json)
