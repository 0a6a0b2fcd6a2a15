"""Plant canaries at a node of your own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from efedllm_client.cli.common import (
    DeploymentFile,
    Home,
    Json,
    Keystore,
    Model,
    PasswordFile,
    Rpc,
    load_settings,
    note,
    print_json,
    run,
)
from efedllm_client.cli.generate import Deposit, MaxPrice, Temperature, TopK, TopP

if TYPE_CHECKING:
    from efedllm_client.jobs.canary import Planted

app = typer.Typer(help=__doc__, no_args_is_help=True)

Node = Annotated[str, typer.Option("--node", help="The node that shall answer wrongly.", metavar="ADDRESS")]
Count = Annotated[int | None, typer.Option("--count", min=1, help="How many; default: one for each prompt.")]
Prompt = Annotated[list[str] | None, typer.Option("--prompt", help="A text to continue. Repeatable.")]
Prompts = Annotated[Path | None, typer.Option("--prompts", help="A file with one prompt a line.")]
MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", "--max-tokens", help="Most tokens to generate.")]


@app.callback()
def main() -> None:
    """Canaries look like any other job until the node opens them."""


@app.command("plant")
def plant(
    node: Node,
    count: Count = None,
    prompt: Prompt = None,
    prompts: Prompts = None,
    max_new_tokens: MaxNewTokens = 64,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    max_price: MaxPrice = None,
    deposit: Deposit = None,
    model: Model = None,
    json_: Json = False,
    home: Home = None,
    rpc: Rpc = None,
    deployment: DeploymentFile = None,
    keystore: Keystore = None,
    password_file: PasswordFile = None,
) -> None:
    """Buy jobs over a route through --node and ask it to answer them wrongly.

    The node must run with --canary-client and the address of this wallet, and must keep running until the verifiers of
    the work have revealed: it is then forgiven by opening what was planted.
    """
    from efedllm.chain.amounts import GWEI, parse_amount
    from efedllm_client.api import Client
    from efedllm_client.jobs.canary import check_prompts
    from efedllm_client.jobs.options import GenerateOptions

    settings = load_settings(home, rpc, deployment, keystore, password_file, model)
    texts = check_prompts([*(prompt or []), *_lines(prompts)], count)
    options = GenerateOptions(
        max_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        max_price=None if max_price is None else parse_amount(max_price) // GWEI,
        deposit=None if deposit is None else parse_amount(deposit),
    )
    planted: list[Planted] = []

    async def work() -> None:
        async with Client.connect(settings) as client:
            async for item in client.plant(node, texts, options):
                planted.append(item)
                note(f"{len(planted)} of {len(texts)}: {_line(item)}")
        if json_:
            print_json({"planted": [item.to_json() for item in planted]})
        last = planted[-1]
        note(f"keep {last.node} running until epoch {last.epoch + 2} is over: it opens them by then")

    run(work)


def _line(item: Planted) -> str:
    from efedllm.chain.amounts import format_amount

    return f"job 0x{item.job_id.hex()[:16]}, {item.tokens} tokens, {format_amount(item.cost)}, epoch {item.epoch}"


def _lines(file: Path | None) -> list[str]:
    from efedllm.errors import ConfigError

    if file is None:
        return []
    try:
        return file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("bad-option", f"{file} cannot be read as text: {error}.", "Give a UTF-8 file.") from error
