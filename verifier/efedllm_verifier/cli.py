"""Run a staked verifier that audits nodes, and show its recent epochs."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from efedllm import logs
from efedllm.chain.amounts import format_amount, parse_amount
from efedllm.cli import DeploymentFile, Json, Keystore, PasswordFile, RpcUrl
from efedllm.settings import Device, LocalMember, Settings, local_members
from efedllm.sizes import parse_size

if TYPE_CHECKING:
    from efedllm.chain.client import Chain
    from efedllm.chain.deployment import Deployment
    from efedllm_verifier.config import VerifierConfig

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)

# Without --home, below the programs' common home.
SUBDIRECTORY = "verifier"

Home = Annotated[Path | None, typer.Option("--home", help="Directory for records, reports and weights.")]


def _settings(
    home: Path | None,
    rpc: str | None,
    deployment: Path | None,
    keystore: Path | None,
    password_file: Path | None,
    ram: str | None = None,
) -> tuple[Settings, Path]:
    """Settings, and this verifier's own directory."""
    settings = Settings.load(
        home=home, rpc_url=rpc, deployment=deployment, keystore=keystore, password_file=password_file, ram=ram
    )
    logs.setup(settings.log_level, settings.log_format)
    return settings, settings.home if home is not None else settings.home / SUBDIRECTORY


@app.command()
def run(
    rpc: RpcUrl = None,
    deployment: DeploymentFile = None,
    keystore: Keystore = None,
    password_file: PasswordFile = None,
    home: Home = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", help="Where to read weights; default: from the nodes.", metavar="DIR|URL"),
    ] = None,
    stake: Annotated[
        str | None,
        typer.Option("--stake", help="Stake up to this amount of EFED; default: what a seat needs.", metavar="AMOUNT"),
    ] = None,
    listen: Annotated[
        str | None,
        typer.Option("--listen", help="Address at which to serve /metrics and /healthz.", metavar="HOST:PORT"),
    ] = None,
    poll: Annotated[float, typer.Option("--poll", help="Seconds between reads of the chain.")] = 1.0,
    cache_gib: Annotated[float, typer.Option("--cache", help="GiB of weights held in memory.")] = 8.0,
    ram: Annotated[
        str | None,
        typer.Option(
            "--ram",
            help="Memory limit for one engine at a time, such as 2GB; larger models run slower.",
            metavar="SIZE",
        ),
    ] = None,
    device: Annotated[
        Device, typer.Option("--device", help="Device for causal models; on cuda, --ram limits GPU memory.")
    ] = "cpu",
    as_json: Json = False,
) -> None:
    """Audit until stopped by SIGTERM or Ctrl-C. Prints one JSON line when ready."""
    from efedllm.chain import keystore as keystores
    from efedllm_verifier.app import run_verifier
    from efedllm_verifier.config import VerifierConfig, parse_listen

    settings, directory = _settings(home, rpc, deployment, keystore, password_file, ram)
    if as_json:
        logs.setup(settings.log_level, "json")
    config: VerifierConfig = VerifierConfig(
        rpc_url=settings.need_rpc(),
        deployment=settings.need_deployment(),
        keystore=settings.need_keystore(),
        password=keystores.read_password(settings.password_file),
        home=directory,
        models=tuple(model or ()),
        stake=None if stake is None else parse_amount(stake),
        listen=None if listen is None else parse_listen(listen),
        poll=poll,
        cache_bytes=int(cache_gib * 2**30),
        ram=None if settings.ram is None else parse_size(settings.ram),
        device=device,
        rpc_budget=settings.rpc_budget,
    )
    asyncio.run(run_verifier(config))


@app.command()
def status(
    rpc: RpcUrl = None,
    deployment: DeploymentFile = None,
    keystore: Keystore = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Show stake, seat and last attested epochs of one verifier, or of all in a local network. Needs no password."""
    settings, directory = _settings(home, rpc, deployment, keystore, None)
    members = local_members(settings, "verifiers")
    reports = asyncio.run(_status(settings, directory, members))
    if as_json:
        named = [{"name": member.name} | report for member, report in zip(members, reports, strict=False)]
        print(json.dumps({"verifiers": named} if members else reports[0], indent=2))
        return
    for report in reports:
        _show(report)


async def _status(settings: Settings, home: Path, members: list[LocalMember]) -> list[dict[str, Any]]:
    from efedllm.chain.client import Chain
    from efedllm.chain.deployment import Deployment
    from efedllm.chain.keystore import address_of

    network = Deployment.load(settings.need_deployment())
    wanted = [(member.address, member.home) for member in members]
    wanted = wanted or [(address_of(settings.need_keystore()), home)]
    async with await Chain.connect(settings.need_rpc(), network, budget=settings.rpc_budget) as chain:
        return [await _status_of(chain, network, address, folder) for address, folder in wanted]


async def _status_of(chain: Chain, network: Deployment, address: str, home: Path) -> dict[str, Any]:
    from efedllm_verifier.app import store_path
    from efedllm_verifier.chain_view import ChainView
    from efedllm_verifier.store import AttestationStore

    time = await chain.now()
    stake = await chain.contracts.stake_vault.stake_of(address)
    seats = await chain.verifiers()
    history: list[dict[str, Any]] = []
    path = store_path(home, network, address)
    if path.exists():
        store = await AttestationStore.open(path)
        try:
            history = await store.history()
        finally:
            await store.close()
    for record in history:
        record["points"] = await chain.contracts.verifier_committee.points_of(record["epoch"], address)
    unclaimed = await ChainView(chain, address).unclaimed(time)
    return {
        "address": address,
        "epoch": time.epoch,
        "phase": time.phase,
        "stake": str(stake.active),
        "unbonding": str(stake.unbonding),
        "seat": next(("active" if seat.active else "next epoch" for seat in seats if seat.address == address), None),
        "seats": len(seats),
        "balance": str(await chain.token_balance(address)),
        "unclaimed_epochs": sorted(unclaimed),
        "epochs": history,
    }


def _show(report: dict[str, Any]) -> None:
    console = Console(highlight=False)
    console.print(f"verifier {report['address']}")
    console.print(f"epoch    {report['epoch']}, phase {('commit', 'reveal', 'tally')[report['phase']]}")
    console.print(f"stake    {format_amount(int(report['stake']))}, balance {format_amount(int(report['balance']))}")
    console.print(f"seat     {report['seat'] or 'none'} ({report['seats']} in all)")
    if not report["epochs"]:
        console.print("no epoch attested yet")
        return
    table = Table()
    for column in ("epoch", "nodes", "failed", "severe", "committed", "revealed", "points"):
        table.add_column(column, justify="right")
    for record in report["epochs"]:
        verdicts = record["verdicts"].values()
        table.add_row(
            str(record["epoch"]),
            str(len(verdicts)),
            str(sum(bool(verdict & 0x7F00) for verdict in verdicts)),
            str(sum(bool(verdict & 0x8000) for verdict in verdicts)),
            "yes" if record["commit_tx"] else "no",
            "yes" if record["reveal_tx"] else "no",
            str(record["points"]),
        )
    console.print(table)
