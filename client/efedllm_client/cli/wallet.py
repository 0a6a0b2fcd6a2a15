"""`efedllm wallet`: keys, balances, deposits and sessions."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from efedllm_client.cli.common import print_json, run_with_client
from efedllm_client.cli.options import (
    WALLET_FILE,
    AccountOptions,
    Home,
    Json,
    Keystore,
    PasswordFile,
    expand_options,
)

if TYPE_CHECKING:
    from efedllm_client.api import Client
    from efedllm_client.payments.closing import Closed

app = typer.Typer(help="Keys, balances, deposits and sessions.", no_args_is_help=True, pretty_exceptions_enable=False)


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

    path = keystore or AccountOptions(home=home).settings().home / WALLET_FILE
    # Naming the keystore keeps the password file of a local network's own wallet from being used for this one.
    settings = AccountOptions(home=home, keystore=path, password_file=password_file).settings()
    password = files.read_password(settings.password_file, confirm=True)
    address = files.create(path, password, light=light)
    if json_:
        print_json({"address": address, "keystore": str(path)})
    else:
        print(f"{address}\nkept in {path}: back this file and its password up, nobody can restore them")


@app.command("balance")
@expand_options
def balance(
    account: AccountOptions,
    json_: Json = False,
) -> None:
    """What the wallet holds, in the escrow and in sessions."""
    from efedllm.chain.amounts import format_amount

    async def work(client: Client) -> None:
        held = await client.balances()
        if json_:
            print_json(asdict(held))
            return
        print(held.address)
        print(f"  wallet       {format_amount(held.efed)}, {format_amount(held.eth, 'ETH')} for gas")
        print(f"  escrow       {format_amount(held.escrow)}")
        print(f"  in sessions  {format_amount(held.in_sessions)}, of which promised {format_amount(held.promised)}")

    run_with_client(account.settings(), work)


@app.command("deposit")
@expand_options
def deposit(
    account: AccountOptions,
    amount: Annotated[str, typer.Argument(help="EFED, such as 1.5")],
    json_: Json = False,
) -> None:
    """Move EFED from the wallet to the escrow."""
    from efedllm.chain import format_amount, parse_amount

    wei = positive(parse_amount(amount))

    async def work(client: Client) -> None:
        tx = await client.deposit(wei)
        held = await client.balances()
        if json_:
            print_json({"tx": tx, "deposited": wei, "escrow": held.escrow})
        else:
            print(f"deposited {format_amount(wei)}; the escrow holds {format_amount(held.escrow)} ({tx})")

    run_with_client(account.settings(), work)


@app.command("withdraw")
@expand_options
def withdraw(
    account: AccountOptions,
    amount: Annotated[str | None, typer.Argument(help="EFED; everything when not given.")] = None,
    json_: Json = False,
) -> None:
    """Move EFED from the escrow to the wallet, closing sessions where that is needed."""
    from efedllm.chain import format_amount, parse_amount

    wei = None if amount is None else positive(parse_amount(amount))

    async def work(client: Client) -> None:
        done = await client.withdraw(wei)
        now = (await client.chain.now()).timestamp
        if json_:
            print_json({"withdrawn": done.amount, "escrow": done.left, "sessions": _closed_json(done.sessions)})
            return
        print(f"withdrew {format_amount(done.amount)}; the escrow holds {format_amount(done.left)}")
        _show_closed(done.sessions, now)

    run_with_client(account.settings(), work)


@app.command("sessions")
@expand_options
def sessions(
    account: AccountOptions,
    all_: Annotated[bool, typer.Option("--all", help="Show closed sessions too.")] = False,
    json_: Json = False,
) -> None:
    """Sessions opened from this wallet."""
    from efedllm.chain.amounts import format_amount

    async def work(client: Client) -> None:
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

    run_with_client(account.settings(), work)


@app.command("close")
@expand_options
def close(
    account: AccountOptions,
    json_: Json = False,
) -> None:
    """Settle and close every session that is not in use; run again after the grace period to get the refunds."""

    async def work(client: Client) -> None:
        done = await client.close_sessions()
        now = (await client.chain.now()).timestamp
        if json_:
            print_json(_closed_json(done))
            return
        if not done:
            print("no open sessions")
        _show_closed(done, now)

    run_with_client(account.settings(), work)


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
