"""Buying inferences as a client would: the client program as a process, its report read from a file."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efedllm_deploy.process import ProcessError, spawn

if TYPE_CHECKING:
    from efedllm_deploy.network import LocalNetwork

INFERENCE_SECONDS = 180.0

# A fixed seed: the same text every time, from honest nodes.
SAMPLING = ("--temperature", "0.5", "--top-p", "0.9", "--seed", "1")

# A network that was kept has nodes of little trust; what is shown is the route by cost.
ROUTING = ("--explore", "0")


async def generate(
    network: LocalNetwork,
    prompt: str,
    max_tokens: int,
    *,
    route: Sequence[str] = (),
    avoid: Sequence[str] = (),
    show: bool = True,
) -> dict[str, Any]:
    """Generate from the network's wallet and return the client's report.

    `show`: the text streams to our own terminal. Raises ProcessError when the client fails.
    """
    folder = network.home / "reports"
    folder.mkdir(exist_ok=True)
    report = folder / f"{len(list(folder.iterdir()))}.json"
    argv = [
        *(sys.executable, "-m", "efedllm_client", "generate", prompt, "--max-tokens", str(max_tokens)),
        *("--home", str(network.home), "--report", str(report), *SAMPLING, *ROUTING),
        *(("--route", ",".join(route)) if route else ()),
        *(("--avoid", ",".join(avoid)) if avoid else ()),
    ]
    if show:
        # The client prints what follows the prompt.
        print(f"\n{prompt}", end="", flush=True)
    child = await spawn("client", argv, network.home / "logs" / "client.log", inherit=show)
    try:
        async with asyncio.timeout(INFERENCE_SECONDS):
            code = await child.process.wait()
    except TimeoutError as error:
        raise ProcessError(
            "process-slow", f"The client did not finish within {INFERENCE_SECONDS:.0f} s.", f"See {child.log}"
        ) from error
    finally:
        await child.stop(grace=2.0)
    if code != 0:
        raise child.died("while generating")
    return _read(report)


def _read(report: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(report.read_text())
    return value
