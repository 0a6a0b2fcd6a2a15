"""Prove that a node signed two commitments for one job."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from efedllm_client.cli.common import (
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
    from efedllm.commitments.equivocation import Equivocation

app = typer.Typer(help=__doc__, no_args_is_help=True)


@app.callback()
def main() -> None:
    """Evidence lies in the folder `evidence` of whoever found it: a client, a node or a verifier."""


@app.command("check")
def check(
    file: Annotated[Path, typer.Argument(help="A file of evidence.", metavar="FILE")],
    json_: Json = False,
) -> None:
    """Say whether a file proves something. Needs no chain: whose the keys are is left to the contract."""
    from efedllm.chain.disputes import read_proof

    proof = read_proof(file)
    if json_:
        print_json(described(proof))
        return
    _show({name: value for name, value in described(proof).items() if name != "proof"})


@app.command("equivocation")
def prove_equivocation(
    evidence: Annotated[Path, typer.Option("--evidence", help="A file of evidence.", metavar="FILE")],
    json_: Json = False,
    home: Home = None,
    rpc: Rpc = None,
    deployment: DeploymentFile = None,
    keystore: Keystore = None,
    password_file: PasswordFile = None,
) -> None:
    """Show two commitments to the contract: it slashes and excludes the node, and pays this wallet its share."""
    from efedllm.chain.amounts import format_amount
    from efedllm.chain.disputes import prove, read_proof
    from efedllm_client.api import Client

    # First, so that a file that proves nothing costs neither a password nor a connection.
    proof = read_proof(evidence)
    settings = load_settings(home, rpc, deployment, keystore, password_file)

    async def work() -> None:
        async with Client.connect(settings) as client:
            done = await prove(client.chain, proof)
        event = done.event("EquivocationProven").args
        slashed, reward = int(event["slashed"]), int(event["reward"])
        shown = {
            "node": proof.node,
            "job_id": "0x" + proof.job_id.hex(),
            "hop": proof.hop,
            "excluded_until_epoch": int(event["excludedUntil"]),
            "tx": done.hash,
            "gas": done.gas_used,
        }
        if json_:
            print_json(shown | {"slashed_wei": slashed, "reward_wei": reward})
        else:
            _show(shown | {"slashed": format_amount(slashed), "reward": format_amount(reward)})

    run(work)


def described(proof: Equivocation) -> dict[str, Any]:
    """What a proof says, as plain data."""
    return {
        "proof": True,
        "node": proof.node,
        "job_id": "0x" + proof.job_id.hex(),
        "hop": proof.hop,
        "signers": list(dict.fromkeys(proof.signers)),
        "differ_in": list(proof.differing),
        "chain_id": proof.domain.chain_id,
        "commitment_log": proof.domain.contract,
    }


def _show(values: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None)
    for name, value in values.items():
        table.add_row(name.replace("_", " "), ", ".join(map(str, value)) if isinstance(value, list) else str(value))
    Console(highlight=False).print(table)
