"""Talk with a model; /reset forgets the conversation, /quit or Ctrl-D ends it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from efedllm.cli import with_options
from efedllm_client.cli.common import note, run_with_client
from efedllm_client.cli.options import MaxTokens, Model, RouteFlags, SamplingFlags, Temperature, TopP, WalletOptions

if TYPE_CHECKING:
    from efedllm_client.api import Client
    from efedllm_client.jobs.options import GenerateOptions


@dataclass(frozen=True)
class ChatSamplingFlags(SamplingFlags):
    """The defaults of a conversation."""

    max_tokens: MaxTokens = 128
    temperature: Temperature = 0.7
    top_p: TopP = 0.95


@with_options
def chat(sampling: ChatSamplingFlags, route: RouteFlags, account: WalletOptions, model: Model = None) -> None:
    settings = account.settings(model)
    options = sampling.options(route)

    async def work(client: Client) -> None:
        await converse(client, options)

    run_with_client(settings, work)


async def converse(client: Client, options: GenerateOptions) -> None:
    """Read turns from stdin until it ends. A failed turn is reported and leaves the conversation as it was."""
    import asyncio

    from efedllm.errors import EfedError
    from efedllm_client.cli.generate import stream, summarize
    from efedllm_client.text.chat import Conversation

    info = await client.model(min_quality=options.min_quality)
    conversation = Conversation(await client.tokenizer(info, await client.nodes(info)))
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
