"""The whole story on this machine: inference bought and audited, one cheating node caught and slashed."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from efedllm import logs
from efedllm.chain.amounts import format_amount
from efedllm.chain.connection import LOCAL_CHAIN_IDS
from efedllm.errors import ConfigError
from efedllm.settings import Settings, read_network
from efedllm_deploy.cli_common import console, entry, need_engine, print_json, run
from efedllm_deploy.demo import Demo, DemoResult
from efedllm_deploy.demo_facts import gas_by_operation
from efedllm_deploy.homefiles import lock_home
from efedllm_deploy.layout import NetworkOptions
from efedllm_deploy.network import LocalNetwork

app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False)

# Long enough that a slow machine finishes its audits in the commit phase; the clock is moved, nobody waits for it.
EPOCH_SECONDS = 600

# What a local network and its clients leave in their home.
_OURS = re.compile(
    r"lock|logs|chain|keys|model|model\.json|models|deployments|network\.json|deployer\.pending\.json|client|receipts"
    r"|reports|(node|verifier)-\d+"
)


@app.callback(invoke_without_command=True)
def demo(
    chain: Annotated[str, typer.Option(help="ganache or anvil.")] = "ganache",
    home: Annotated[Path | None, typer.Option(help="Folder for the demo; wiped at the start.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Do not wipe the folder: resume what is there.")] = False,
    max_tokens: Annotated[int, typer.Option(help="Tokens of each inference.")] = 40,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")] = False,
) -> None:
    """The whole story on this machine: inference bought and audited, one cheating node caught and slashed."""
    need_engine()
    settings = Settings.load(network=False)
    logs.setup("warning" if settings.log_level == "info" else settings.log_level, settings.log_format)
    if chain not in ("ganache", "anvil"):
        raise ConfigError("bad-options", f"The demo cannot run on {chain}.", "Use --chain ganache or --chain anvil.")
    folder = home or settings.home / "demo"
    if not keep:
        wipe(folder)
    options = NetworkOptions(home=folder, chain=chain, epoch_length=EPOCH_SECONDS, verifier_poll=0.5)
    result: DemoResult | None = run(_demo(options, max_tokens, as_json))
    if result is None:
        raise typer.Exit(130)
    if as_json:
        print_json(result.to_json())
    else:
        show(result)
    if not result.ok:
        raise typer.Exit(1)


def wipe(folder: Path) -> None:
    """Delete an earlier demo. Nothing is deleted of a folder that holds anything else, or a network that runs.

    Raises ConfigError "not-a-demo" or "home-busy".
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ConfigError("not-a-demo", f"{folder} is not a folder.", "Choose an empty folder with --home.")
    foreign = sorted(item.name for item in folder.iterdir() if not _OURS.fullmatch(item.name))
    if foreign:
        raise ConfigError("not-a-demo", f"{folder} holds other files ({foreign[0]}).", "Choose an empty folder.")
    if read_network(folder).get("chain_id") not in (None, *LOCAL_CHAIN_IDS):
        raise ConfigError("not-a-demo", f"{folder} holds keys of a public chain.", "Choose an empty folder.")
    with lock_home(folder):
        # The compressed model depends on nothing but its options, and is kept.
        for item in folder.iterdir():
            if item.name not in ("lock", "model", "model.json"):
                shutil.rmtree(item) if item.is_dir() else item.unlink()


async def _demo(options: NetworkOptions, max_tokens: int, as_json: bool) -> DemoResult:
    def say(text: str) -> None:
        if not as_json:
            console.print(f"[dim]·[/dim] {text}")

    async with LocalNetwork(options, say) as network:
        if not as_json:
            from efedllm_deploy.up_cli import show_network

            show_network(network)
        return await Demo(network, say, show=not as_json, max_tokens=max_tokens).run()


def show(result: DemoResult) -> None:
    """Tables of who earned and lost what, the transactions, and the checks."""
    console.print(_nodes(result))
    console.print(_transactions(result))
    checks = Table(title="Read back from the chain", show_header=False, box=None, padding=(0, 1))
    for check in result.checks:
        checks.add_row("[green]yes[/green]" if check.ok else "[red]NO[/red]", check.name, check.detail)
    console.print(checks)
    state = "all true" if result.ok else "NOT ALL TRUE"
    console.print(f"{len(result.checks)} claims, {state}; {result.seconds:.0f} s after the set-up")


def _money(wei: object) -> str:
    return f"{float(format_amount(int(str(wei)), '')):,.3f}"


def _short(text: str) -> str:
    """Enough of an address or hash to find it; the whole of it is in the --json output."""
    return text if console.width >= 120 else f"{text[:8]}…{text[-4:]}"


def _nodes(result: DemoResult) -> Table:
    table = Table(title="Nodes and verifiers, amounts in EFED", box=None, padding=(0, 1))
    for column in ("name", "address", "layers", "trust"):
        table.add_column(column, no_wrap=True)
    for column in ("stake", "fees", "rewards", "slashed"):
        table.add_column(column, justify="right", no_wrap=True)
    for node in result.nodes:
        caught = result.cheater is not None and result.cheater.caught and node["address"] == result.cheater.address
        table.add_row(
            str(node["name"]),
            _short(str(node["address"])),
            str(node["layers"]),
            f"{node['trust']:.3f}",
            *(_money(node[key]) for key in ("stake", "paid", "rewarded", "slashed")),
            style="red" if caught else "",
        )
    for verifier in result.verifiers:
        stake, rewarded, slashed = (_money(verifier[key]) for key in ("stake", "rewarded", "slashed"))
        name, address = str(verifier["name"]), _short(str(verifier["address"]))
        table.add_row(name, address, "", "", stake, "", rewarded, slashed)
    return table


def _transactions(result: DemoResult) -> Table:
    """One row for each kind of transaction; all of them are in the --json output."""
    table = Table(title=f"{len(result.done)} transactions", box=None, padding=(0, 1))
    table.add_column("operation", no_wrap=True)
    for column in ("how many", "mean gas"):
        table.add_column(column, justify="right")
    table.add_column("the last one", no_wrap=True)
    for operation, gas in gas_by_operation(result.done).items():
        same = [item for item in result.done if item.operation == operation]
        table.add_row(operation, str(len(same)), f"{gas:,}", _short(same[-1].hash))
    return table


if __name__ == "__main__":
    entry(app)
