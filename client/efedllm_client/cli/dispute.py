"""Prove that a node signed two commitments for one job."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from efedllm.cli import Json, with_options
from efedllm_client.cli.common import print_json, run_with_client
from efedllm_client.cli.options import WalletOptions

if TYPE_CHECKING:
    from efedllm.commitments.equivocation import Equivocation
    from efedllm_client.api import Client

app = typer.Typer(help=__doc__, no_args_is_help=True)


@app.callback()
def main() -> None:
    """A client, a node or a verifier that finds evidence keeps it in the folder `evidence` of its home."""


@app.command("check")
def check(
    file: Annotated[Path, typer.Argument(help="A file of evidence.", metavar="FILE")],
    json_: Json = False,
) -> None:
    """Check whether a file proves something. Needs no chain: only the contract knows who owns the keys."""
    from efedllm.chain.disputes import read_proof

    proof = read_proof(file)
    if json_:
        print_json(described(proof))
        return
    _show({name: value for name, value in described(proof).items() if name != "proof"})


@app.command("equivocation")
@with_options
def prove_equivocation(
    account: WalletOptions,
    evidence: Annotated[Path, typer.Option("--evidence", help="A file of evidence.", metavar="FILE")],
    json_: Json = False,
) -> None:
    """Send two commitments to the contract: it slashes and excludes the node, and pays this wallet a reward."""
    from efedllm.chain.amounts import format_amount
    from efedllm.chain.disputes import prove, read_proof

    # First, so that a file that proves nothing asks for no password and no connection.
    proof = read_proof(evidence)

    async def work(client: Client) -> None:
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

    run_with_client(account.settings(), work)


def described(proof: Equivocation) -> dict[str, Any]:
    """A proof as plain data."""
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
