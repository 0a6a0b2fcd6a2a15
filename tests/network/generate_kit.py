"""Clients of a local network in tests: what they should get, and the command as a person runs it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from contextlib import aclosing
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from efedllm.commitments.blame import check_route_commits
from efedllm.commitments.messages import JobSpec, RouteHop, SignedCommit
from efedllm.engine.protocol import Executor, StepItem, constants_of
from efedllm.engine.select import load_executor
from efedllm.sampling.exact import sample_exact
from efedllm.sampling.float import SamplingSpec, sample
from efedllm_client.api import Client
from efedllm_client.jobs.generation import Piece
from efedllm_client.jobs.options import GenerateOptions, sampling_of
from efedllm_deploy.network import LocalNetwork, Member

PROMPT = "def read_lines(path):"


@cache
def whole_engine(directory: Path) -> Executor:
    return load_executor(directory, 0, 8)


def expected(model_dir: Path, prompt: Sequence[int], options: GenerateOptions) -> list[int]:
    """The tokens one engine over the whole model gives."""
    engine = whole_engine(model_dir)
    sampling = sampling_of(options, None)
    spec = SamplingSpec(sampling.temperature_milli, sampling.top_k, sampling.top_p_ppm, sampling.seed)
    choose = sample if constants_of(engine) is None else sample_exact
    sequence, ids = engine.new_sequence(), list(prompt)
    feed = ids
    for _ in range(options.max_tokens):
        hidden = engine.step([StepItem(sequence, np.array(feed, dtype=np.int32))])[0]
        ids.append(choose(engine.logits(hidden[-1:])[0], spec, len(ids)))
        feed = ids[-1:]
    return ids[len(prompt) :]


async def prompt_ids(client: Client) -> list[int]:
    model = await client.model()
    return (await client.tokenizer(model, await client.nodes(model))).encode(PROMPT)


async def text_of(client: Client, options: GenerateOptions, model: str | None = None) -> str:
    async with aclosing(client.events(PROMPT, options, model=model)) as events:
        return "".join([event.text async for event in events if isinstance(event, Piece)])


def member(network: LocalNetwork, address: str) -> Member:
    return next(node for node in network.nodes if node.address == address)


def own_environment(**more: str) -> dict[str, str]:
    """The environment of a process that runs the code under test."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **more}


async def efedllm(network: LocalNetwork, *words: str, typed: str = "", **environment: str) -> tuple[int, str, str]:
    """Run the command as a person would, who types `typed`; exit code, stdout, stderr."""
    process = await start(network, *words, **environment)
    out, err = await asyncio.wait_for(process.communicate(typed.encode()), 120)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def start(network: LocalNetwork, *words: str, **environment: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "efedllm_client",
        *words,
        cwd=network.home,
        env=own_environment(EFEDLLM_HOME=str(network.home), **environment),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


def link_faults(network: LocalNetwork, path: str) -> list[Any]:
    """What a third person finds in a receipt file, with the public checks only."""
    document = json.loads(Path(path).read_text())
    return list(
        check_route_commits(
            JobSpec.from_json(document["job_spec"]),
            document["prompt_ids"],
            document["token_ids"],
            [SignedCommit.from_json(commit) for commit in document["commits"]],
            domain=network.chain.efl_domain,
            route=[RouteHop.from_json(hop) for hop in document["route"]],
            model_id=network.model_id,
        )
    )
