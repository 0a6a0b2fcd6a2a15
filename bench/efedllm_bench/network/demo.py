"""Speed and cost of the network against plain transformers, everything measured in one run.

Routes through 1, 2 and 4 nodes and the baseline take turns, so that a busy moment of the machine hits all of them;
medians and the spread over the turns are reported. Gas and the time to the first token come from one run of
`efedllm demo`.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from efedllm.checkout import project_root
from efedllm.errors import EfedError
from efedllm.models.manifest import Manifest
from efedllm.settings import Settings
from efedllm_bench.network.baseline import Baseline
from efedllm_bench.network.unit_costs import UnitCosts, authentication_us_per_token, measure
from efedllm_bench.network.wire_bytes import scrape
from efedllm_bench.processor import processor_name
from efedllm_client.api import Client
from efedllm_client.jobs.options import GenerateOptions, RouteOptions
from efedllm_deploy.layout import GWEI_PER_EFED, NetworkOptions, NodePlacement
from efedllm_deploy.network import LocalNetwork

Say = Callable[[str], None]

PROMPT = "def fibonacci(n):"
HOPS = (1, 2, 4)


@dataclass(frozen=True)
class DemoBench:
    """What to run. `turns`: how often each route is measured; `tokens`: new tokens of one generation."""

    turns: int = 5
    tokens: int = 128
    with_demo: bool = True


@dataclass(frozen=True)
class RouteFigures:
    """Medians over the turns. Times are of decoding: from the first new token to the last."""

    hops: int
    tokens_per_second: float
    slowest: float
    fastest: float
    of_baseline: float  # ratio to the baseline of the same turn, median
    ms_per_token: float
    first_token_s: float
    bytes_per_token: float  # all frames received by nodes, plus what they sent to the client
    authentication_share: float  # signatures and hashes on the critical path, of the time of a token


async def run(options: DemoBench, say: Say) -> dict[str, Any]:
    """All figures as one JSON object. Raises EfedError when the network cannot be run."""
    demo = await _demo(say) if options.with_demo else None
    with tempfile.TemporaryDirectory(prefix="efedllm-bench-") as folder:
        speed = await _speed(options, Path(folder), say)
    return {
        "machine": {"cpu": processor_name(), "cores": os.cpu_count(), "python": platform.python_version()},
        "options": asdict(options),
        **speed,
        "demo": demo,
    }


# --- speed ---


def layout(layers: int) -> tuple[NodePlacement, ...]:
    """Nodes for routes of 1, 2 and 4 hops, in this order."""
    return tuple(
        NodePlacement(layers * hop // hops, layers * (hop + 1) // hops, GWEI_PER_EFED // hops)
        for hops in HOPS
        for hop in range(hops)
    )


def routes(addresses: list[str]) -> dict[int, tuple[str, ...]]:
    """The nodes of each route, by its number of hops."""
    found, start = {}, 0
    for hops in HOPS:
        found[hops] = tuple(addresses[start : start + hops])
        start += hops
    return found


async def _speed(options: DemoBench, home: Path, say: Say) -> dict[str, Any]:
    checkpoint = project_root() / "models" / "pylib-7m"
    baseline = await asyncio.to_thread(Baseline, checkpoint)
    say("starting seven nodes: routes of 1, 2 and 4 hops")
    network_options = NetworkOptions(home=home, verifiers=0, layout=layout(8), epoch_length=3600)
    async with LocalNetwork(network_options, say) as network:
        manifest = Manifest.load(network.model_dir)
        costs = measure(manifest.hidden)
        turns: dict[int, list[dict[str, Any]]] = {hops: [] for hops in HOPS}
        plain: list[float] = []
        ways = routes([member.address for member in network.nodes])
        async with Client.connect(Settings.load(home=home)) as client:
            ids = (await client.tokenizer(model := await client.model(), await client.nodes(model))).encode(PROMPT)
            for hops in HOPS:  # opens the sessions, warms up
                await _generate(client, ways[hops], 8)
            await asyncio.to_thread(baseline.generate, ids, 8)
            for turn in range(options.turns):
                say(f"turn {turn + 1} of {options.turns}")
                plain.append((await asyncio.to_thread(baseline.generate, ids, options.tokens)).tokens_per_second)
                for hops in HOPS:
                    endpoints = [member.endpoint for member in network.nodes if member.address in ways[hops]]
                    before = await scrape(endpoints)
                    report = await _generate(client, ways[hops], options.tokens)
                    moved = await scrape(endpoints)
                    moved.subtract(before)
                    turns[hops].append({**report, "moved": moved})
        return {
            "model": {
                "layers": manifest.layers,
                "hidden": manifest.hidden,
                "method": manifest.method,
                "keep": manifest.keep,
                "quant": manifest.quant,
            },
            "baseline_tokens_per_second": _spread(plain),
            "routes": [asdict(figures) for figures in _figures(turns, plain, costs)],
            "ms_per_extra_hop": _per_hop(turns),
            "unit_costs_us": asdict(costs),
        }


async def _generate(client: Client, route: tuple[str, ...], tokens: int) -> dict[str, Any]:
    options = GenerateOptions(max_tokens=tokens, stop_at_eos=False, route=RouteOptions(nodes=route))
    async for _event in client.events(PROMPT, options):
        pass
    assert client.report is not None
    report = client.report.to_json()
    if not report["receipts_ok"] or report["tokens"] != tokens:
        raise EfedError("bench-failed", f"A generation over {len(route)} hops did not end well: {report['faults']}")
    return report


def _figures(turns: dict[int, list[dict[str, Any]]], plain: list[float], costs: UnitCosts) -> list[RouteFigures]:
    found = []
    for hops, reports in turns.items():
        rates = [report["tokens_per_second"] for report in reports]
        pace = 1000 / statistics.median(rates)
        found.append(
            RouteFigures(
                hops=hops,
                tokens_per_second=round(statistics.median(rates), 1),
                slowest=round(min(rates), 1),
                fastest=round(max(rates), 1),
                of_baseline=round(statistics.median(a / b for a, b in zip(rates, plain, strict=True)), 3),
                ms_per_token=round(pace, 2),
                first_token_s=round(statistics.median(report["first_token_s"] for report in reports), 3),
                bytes_per_token=round(statistics.median(_bytes(report) for report in reports)),
                authentication_share=round(authentication_us_per_token(costs, hops) / 1000 / pace, 3),
            )
        )
    return found


def _bytes(report: dict[str, Any]) -> float:
    """Bytes that crossed a socket, per token of the job: what nodes received and what the client received."""
    moved: Counter[tuple[str, str]] = report["moved"]
    received = sum(count for (direction, _frame), count in moved.items() if direction == "received")
    positions = int(report["prompt_tokens"]) + int(report["tokens"])
    return (received + int(report["bytes_in"])) / positions


def _per_hop(turns: dict[int, list[dict[str, Any]]]) -> float:
    """Milliseconds that one more hop adds to a token: the slope between 1 hop and the longest route, same turn."""
    longest = max(HOPS)
    slopes = [
        float(1000 / far["tokens_per_second"] - 1000 / near["tokens_per_second"]) / (longest - 1)
        for near, far in zip(turns[1], turns[longest], strict=True)
    ]
    return round(statistics.median(slopes), 2)


def _spread(values: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 1),
        "slowest": round(min(values), 1),
        "fastest": round(max(values), 1),
    }


# --- the demo ---


async def _demo(say: Say) -> dict[str, Any]:
    say("running the demo for gas and the time to the first token")
    started = time.time()
    with tempfile.TemporaryDirectory(prefix="efedllm-bench-demo-") as folder:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "efedllm_deploy.demo_cli", "--home", folder, "--json"),
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            out, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.terminate()
                await process.wait()
    if process.returncode != 0:
        raise EfedError("bench-failed", f"The demo ended with code {process.returncode}.", "Run `efedllm demo`.")
    result = json.loads(out)
    gas: dict[str, int] = result["gas"]
    return {
        "seconds": round(time.time() - started, 1),
        "seconds_to_first_token": round(result["first_token_at"] - started, 1),
        "gas": gas,
        "gas_per_inference": {str(jobs): per_inference(gas, jobs) for jobs in (1, 10, 100, 1000)},
        "ledger_ok": result["ledger_check"]["ok"],
    }


def per_inference(gas: dict[str, int], jobs: int) -> int:
    """Gas that one of `jobs` inferences in one session costs client and two nodes: the session is opened and settled
    once, and each of the two nodes posts one batch with all its receipts. Audits cost the same however many there are.
    """
    return round((gas["open session"] + gas["settle"] + 2 * gas["post batch"]) / jobs)
