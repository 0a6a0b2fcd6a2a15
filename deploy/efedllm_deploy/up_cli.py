"""Run a whole network on this machine: chain, contracts, model, nodes, verifiers, a funded wallet."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from efedllm import logs
from efedllm.chain.amounts import GWEI, format_amount
from efedllm.cli import PasswordFile
from efedllm.settings import Settings
from efedllm_deploy.bundled import ModelChoice
from efedllm_deploy.cli_common import console, entry, need_engine, print_json, run
from efedllm_deploy.layout import NetworkOptions
from efedllm_deploy.network import LocalNetwork

app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True)
def up(
    chain: Annotated[str, typer.Option(help="ganache, anvil, or the RPC address of a running chain.")] = "ganache",
    home: Annotated[Path | None, typer.Option(help="Folder for everything; ~/.efedllm by default.")] = None,
    nodes: Annotated[int, typer.Option(help="Nodes; 4 cover every layer twice.")] = 4,
    verifiers: Annotated[int, typer.Option(help="Verifiers.")] = 3,
    profile: Annotated[str, typer.Option(help="Parameters of the contracts.")] = "local",
    model: Annotated[str, typer.Option(help="Checkpoint folder or hub id; the bundled model by default.")] = "",
    keep: Annotated[
        float | None, typer.Option(help="Fraction of each matrix to keep; 0.9 for the bundled model, else 1.")
    ] = None,
    quant: Annotated[str, typer.Option(help="none or int8.")] = "int8",
    method: Annotated[
        str | None, typer.Option(help="truncate, or whiten (calibration.txt beside the model), as for the bundled one.")
    ] = None,
    model_profile: Annotated[
        str, typer.Option(help="How the model is computed: exact, float, or auto: exact where it allows it.")
    ] = "auto",
    keystore: Annotated[Path | None, typer.Option(help="Wallet that pays on a chain that is not local.")] = None,
    password_file: PasswordFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object when ready.")] = False,
) -> None:
    """Run a whole network on this machine until Ctrl-C; starting again in the same home resumes it."""
    need_engine()
    settings = Settings.load(network=False, home=home, keystore=keystore, password_file=password_file)
    logs.setup("warning" if settings.log_level == "info" else settings.log_level, settings.log_format)
    options = NetworkOptions(
        home=settings.home,
        chain=chain,
        nodes=nodes,
        verifiers=verifiers,
        profile=profile,
        model=ModelChoice.of(model, keep, quant, method, model_profile),
        keystore=settings.keystore,
        password_file=settings.password_file,
    )
    run(_up(options, as_json))


async def _up(options: NetworkOptions, as_json: bool) -> None:
    with console.status("starting") as status:
        network = LocalNetwork(options, None if as_json else lambda text: status.update(text))
        await network.start()
    try:
        if as_json:
            print_json({"event": "ready", **network.describe()})
        else:
            show_network(network)
            console.print("Ctrl-C stops everything; the same command resumes it.")
        # Only a process that died ends this wait; Ctrl-C and SIGTERM cancel it.
        raise await network.supervisor.wait_for_death()
    finally:
        await network.stop()


def show_network(network: LocalNetwork) -> None:
    """Tables of what runs where, and what to type next."""
    table = Table(title=f"eFedLLM network: chain {network.chain.chain_id}, {network.rpc_url}", box=None, padding=(0, 1))
    # A terminal of 80 columns has no room for where nodes listen; network.json has it.
    wide = console.width >= 110
    for column in ("name", "address", "layers", "EFED/1k", *(("endpoint",) if wide else ())):
        table.add_column(column, no_wrap=True)
    for member in network.nodes:
        if member.place is not None:
            layers = f"{member.place.lo}:{member.place.hi}"
            price = format_amount(member.place.price * GWEI, "")
            table.add_row(member.name, member.address, layers, price, *((member.endpoint,) if wide else ()))
    for member in network.verifiers:
        table.add_row(member.name, member.address)
    table.add_row("wallet", network.wallet.address)
    console.print(table)
    console.print(f"model     0x{network.model_id.hex()}")
    console.print(f"contracts {network.deployment_path}", soft_wrap=True)
    suffix = "" if network.home == Path("~/.efedllm").expanduser() else f" --home {network.home}"
    console.print(f'Try:  efedllm generate "def fibonacci(n):" --max-tokens 64{suffix}', soft_wrap=True)


if __name__ == "__main__":
    entry(app)
