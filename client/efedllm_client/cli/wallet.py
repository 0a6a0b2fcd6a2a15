"""Keys, balances, deposits and sessions."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from efedllm_client.cli.common import (
    WALLET_FILE,
    DeploymentFile,
    Home,
    Json,
    Keystore,
    PasswordFile,
    Rpc,
    load_settings,
    print_json,
    run,
)

if TYPE_CHECKING:
    from efedllm_client.payments.closing import Closed

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)


@app.command("new")
def new(
    json_: Json = False,
    home: Home = None,
    keystore: Keystore = None,
    password_file: PasswordFile = None,
    light: Annotated[
        bool, typer.Option("--light", help="Cheap key encryption, for throw-away local keys only.")
    ] = False,
) -> None:
    """Make a wallet: an encrypted key file. Never overwrites one."""
    from efedllm.chain import keystore as files

    path = keystore or load_settings(home, None, None).home / WALLET_FILE
    # With a keystore named, the password file of a local network's own wallet is not taken for this one's.
    settings = load_settings(home, None, None, path, password_file)
    password = files.read_password(settings.password_file, confirm=True)
    address = files.create(path, password, light=light)
    if json_:
        print_json({"address": address, "keystore": str(path)})
    else:
        print(f"{address}\nkept in {path}: back this file and its password up, nobody can restore them")


@app.command("balance")
def balance(
    json_: Json = False,
    home: Home = None,
    rpc: Rpc = None,
    deployment: DeploymentFile = None,
    keystore: Keystore = None,
    password_file: PasswordFile = None,
) -> None:
    """What the wallet holds, in the escrow and in sessions."""
    from efedllm.chain.amounts import format_amount
    from efedllm_client.api import Client

    settings = load_settings(home, rpc, deployment, keystore, password_file)

    async def main() -> None:
        async with Client.connect(settings) as client:
            held = await client.balances()
        if json_:
            print_json(asdict(held))
            return
        print(held.address)
        print(f"  wallet       {format_amount(held.efed)}, {format_amount(held.eth, 'ETH')} for gas")
        print(f"  escrow       {format_amount(held.escrow)}")
        print(f"  in sessions  {format_amount(held.in_sessions)}, of which promised {format_amount(held.promised)}")

    run(main)


@app.command("deposit")
def deposit(
    amount: Annotated[str, typer.Argument(help="EFED, such as 1.5")],
    json_: Json = False,
    home: Home = None,
    rpc: Rpc = None,
    deployment: DeploymentFile = None,
    keystore: Keystore = None,
    password_file: PasswordFile = None,
) -> None:
    """Move EFED from the wallet to the escrow."""
    from efedllm.chain import format_amount, parse_amount
    from efedllm_client.api import Client

    wei = positive(parse_amount(amount))
    settings = load_settings(home, rpc, deployment, keystore, password_file)

    async def main() -> None:
        async with Client.connect(settings) as client:
            tx = await client.deposit(wei)
            held = await client.balances()
        if json_:
            print_json({"tx": tx, "deposited": wei, "escrow": held.escrow})
        else:
            print(f"deposited {format_amount(wei)}; the escrow holds {format_amount(held.escrow)} ({tx})")

    run(main)


@app.command("withdraw")
def withdraw(
    amount: Annotated[str | None, typer.Argument(help="EFED; everything when not given.")] = None,
    json_: Json = False,
    home: Home = None,
    rpc: Rpc = None,
    deployment: DeploymentFile = None,
    keystore: Keystore = None,
    password_file: PasswordFile = None,
) -> None:
    """Move EFED from the escrow to the wallet, closing sessions where that is needed."""
    from efedllm.chain import format_amount, parse_amount
    from efedllm_client.api import Client

    wei = None if amount is None else positive(parse_amount(amount))
    settings = load_settings(home, rpc, deployment, keystore, password_file)

    async def main() -> None:
        async with Client.connect(settings) as client:
            done = await client.withdraw(wei)
            now = (await client.chain.now()).timestamp
        if json_:
            print_json({"withdrawn": done.amount, "escrow": done.left, "sessions": _closed_json(done.sessions)})
            return
        print(f"withdrew {format_amount(done.amount)}; the escrow holds {format_amount(done.left)}")
        _show_closed(done.sessions, now)

    run(main)


@app.command("sessions")
def sessions(
    all_: Annotated[bool, typer.Option("--all", help="Closed ones too.")] = False,
    json_: Json = False,
    home: Home = None,
    rpc: Rpc = None,
    deployment: DeploymentFile = None,
    keystore: Keystore = None,
    password_file: PasswordFile = None,
) -> None:
    """Sessions opened from this wallet."""
    from efedllm.chain.amounts import format_amount
    from efedllm_client.api import Client

    settings = load_settings(home, rpc, deployment, keystore, password_file)

    async def main() -> None:
        async with Client.connect(settings) as client:
            views = await client.sessions(with_closed=all_)
            now = (await client.chain.now()).timestamp
        if json_:
            print_json([view.to_json() for view in views])
            return
        if not views:
            print("no open sessions")
        for view in views:
            paid = f"settled {format_amount(view.settled)} of {format_amount(view.deposit)}"
            print(
                f"0x{view.session_id.hex()} {view.status}: {view.tokens} tokens, "
                f"promised {format_amount(view.promised)}, {paid}, "
                f"{len(view.nodes)} nodes, expires in {max(view.expiry - now, 0)} s"
            )

    run(main)


@app.command("close")
def close(
    json_: Json = False,
    home: Home = None,
    rpc: Rpc = None,
    deployment: DeploymentFile = None,
    keystore: Keystore = None,
    password_file: PasswordFile = None,
) -> None:
    """Settle and close every session that is not in use; run again after the grace period to get the refunds."""
    from efedllm_client.api import Client

    settings = load_settings(home, rpc, deployment, keystore, password_file)

    async def main() -> None:
        async with Client.connect(settings) as client:
            done = await client.close_sessions()
            now = (await client.chain.now()).timestamp
        if json_:
            print_json(_closed_json(done))
            return
        if not done:
            print("no open sessions")
        _show_closed(done, now)

    run(main)


def positive(amount: int) -> int:
    """Raises ConfigError "bad-amount" for zero."""
    from efedllm.errors import ConfigError

    if amount <= 0:
        raise ConfigError("bad-amount", "The amount is zero.", "Give a positive number of EFED.")
    return amount


def _closed_json(done: list[Closed]) -> list[dict[str, Any]]:
    return [{**asdict(item), "session_id": "0x" + item.session_id.hex()} for item in done]


def _show_closed(done: list[Closed], now: int) -> None:
    from efedllm.chain.amounts import format_amount

    for item in done:
        name = f"session 0x{item.session_id.hex()[:16]}"
        if item.outcome == "closing":
            seconds = max(item.closes_at - now, 0)
            print(f"{name}: closing; {format_amount(item.refund)} can be had back in {seconds} s, when its grace ends")
        elif item.outcome == "closed":
            print(f"{name}: closed, {format_amount(item.refund)} refunded")
        elif item.outcome == "busy":
            print(f"{name}: in use by a running client")
