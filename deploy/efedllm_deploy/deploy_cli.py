"""Deploy the contracts to any EVM chain; running it again verifies them or resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from efedllm import logs
from efedllm.chain.connection import Rpc
from efedllm.cli import Json, Keystore, PasswordFile, RpcUrl
from efedllm.errors import ConfigError
from efedllm.settings import Settings
from efedllm_deploy.cli_common import console, entry, open_account, print_json, run
from efedllm_deploy.deployer import Deployed, DeployStep, deploy_contracts
from efedllm_deploy.profile import Profile

app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True)
def deploy(
    rpc: RpcUrl = None,
    keystore: Keystore = None,
    password_file: PasswordFile = None,
    profile: Annotated[str, typer.Option(help="local, testnet, production, or a .toml file.")] = "local",
    out: Annotated[Path, typer.Option(help="Folder for <chainId>.json.")] = Path("deployments"),
    chain_id: Annotated[int | None, typer.Option(help="Refuse any other chain than this.")] = None,
    admin: Annotated[str | None, typer.Option(help="Address that takes over the administration at the end.")] = None,
    treasury: Annotated[str | None, typer.Option(help="Address that earns the treasury share.")] = None,
    as_json: Json = False,
) -> None:
    """Deploy the contracts to any EVM chain; running it again verifies them or resumes."""
    # Not from a running local network: its client wallet must not deploy by accident.
    settings = Settings.load(network=False, rpc_url=rpc, keystore=keystore, password_file=password_file)
    logs.setup(settings.log_level, settings.log_format)
    done = run(_deploy(settings, Profile.load(profile), out, chain_id, admin, treasury, quiet=as_json))
    if done is None:
        raise typer.Exit(130)
    if as_json:
        print_json(_report(done))
    else:
        _show(done)


async def _deploy(
    settings: Settings,
    profile: Profile,
    out: Path,
    chain_id: int | None,
    admin: str | None,
    treasury: str | None,
    *,
    quiet: bool,
) -> Deployed:
    for name, address in (("--admin", admin), ("--treasury", treasury)):
        if address is not None and not _is_address(address):
            raise ConfigError("bad-address", f"{name} {address} is not an address.", "Write 0x and 40 hex digits.")
    rpc_url = settings.need_rpc()
    rpc = Rpc(rpc_url, budget=settings.rpc_budget)
    try:
        found = await rpc.integer("eth_chainId")
    finally:
        await rpc.close()

    def tell(step: DeployStep) -> None:
        if not quiet:
            console.print(f"  {'found' if step.skipped else 'done '}  {step.name:32} {step.detail}")

    return await deploy_contracts(
        rpc_url,
        open_account(settings, found),
        profile,
        out,
        expected_chain_id=chain_id,
        admin=admin,
        treasury=treasury,
        on_step=tell,
        budget=settings.rpc_budget,
    )


def _is_address(text: str) -> bool:
    return len(text) == 42 and text.startswith("0x") and all(digit in "0123456789abcdefABCDEF" for digit in text[2:])


def _report(done: Deployed) -> dict[str, object]:
    deployment = done.deployment
    return {
        "chain_id": deployment.chain_id,
        "file": str(done.path),
        "contracts": {name: item.address for name, item in deployment.contracts.items()},
        "gas": {step.name: step.gas for step in done.steps if not step.skipped},
        "deployed": sum(not step.skipped for step in done.steps),
        "verified": sum(step.skipped for step in done.steps),
    }


def _show(done: Deployed) -> None:
    table = Table(title=f"Chain {done.deployment.chain_id}")
    for column in ("contract", "address", "gas"):
        table.add_column(column, justify="right" if column == "gas" else "left")
    for step in done.steps:
        table.add_row(step.name, step.detail, "" if step.skipped else f"{step.gas:,}")
    console.print(table)
    print(done.path)


if __name__ == "__main__":
    entry(app)
