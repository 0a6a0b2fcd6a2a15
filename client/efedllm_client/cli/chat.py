"""Talk with a model; /reset forgets the conversation, /quit or Ctrl-D ends it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from efedllm_client.cli.common import DeploymentFile, Home, Keystore, Model, PasswordFile, Rpc, load_settings, note, run
from efedllm_client.cli.generate import (
    AvoidNames,
    Explore,
    MaxTokens,
    MinQuality,
    RouteNames,
    Seed,
    Temperature,
    TopK,
    TopP,
    Wire,
    names,
)
from efedllm_client.routes.newcomers import SHARE

if TYPE_CHECKING:
    from efedllm_client.api import Client
    from efedllm_client.jobs.options import GenerateOptions


def chat(
    max_tokens: MaxTokens = 128,
    temperature: Temperature = 0.7,
    top_k: TopK = 0,
    top_p: TopP = 0.95,
    seed: Seed = None,
    wire: Wire = "f32",
    route: RouteNames = None,
    avoid: AvoidNames = None,
    explore: Explore = SHARE,
    min_quality: MinQuality = None,
    model: Model = None,
    home: Home = None,
    rpc: Rpc = None,
    deployment: DeploymentFile = None,
    keystore: Keystore = None,
    password_file: PasswordFile = None,
) -> None:
    from efedllm_client.api import Client
    from efedllm_client.jobs.options import GenerateOptions

    settings = load_settings(home, rpc, deployment, keystore, password_file, model)
    options = GenerateOptions(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        wire=wire,
        route=names(route),
        avoid=names(avoid),
        explore=explore,
        min_quality=min_quality,
    )

    async def main() -> None:
        async with Client.connect(settings) as client:
            await converse(client, options)

    run(main)


async def converse(client: Client, options: GenerateOptions) -> None:
    """Read turns from stdin until it ends. A failed turn is reported and leaves the conversation as it was."""
    import asyncio

    from efedllm.errors import EfedError
    from efedllm_client.cli.generate import stream, summarize
    from efedllm_client.text.chat import Conversation

    info = await client.model(min_quality=options.min_quality)
    conversation = Conversation(await client.text(info, await client.nodes(info)))
    while (line := await asyncio.to_thread(read_line)) is not None:
        said = line.strip()
        if said == "/quit":
            return
        if said == "/reset":
            conversation.reset()
        elif said:
            try:
                await stream(client, conversation.prompt(said, options.max_tokens), options, quiet=False)
            except EfedError as error:
                note(f"error: {error}")
                continue
            if client.report is not None:
                conversation.add(said, client.report.text)
                summarize(client.report)


def read_line() -> str | None:
    """The next line the person types; None at the end."""
    if sys.stdin.isatty():
        print("> ", end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    return line if line else None
