"""An epoch of one job, what the verifiers said of it, and verifiers that die: in this process, and as processes."""

from __future__ import annotations

import asyncio
import json
import sys

from efedllm.sampling.float import SamplingSpec
from efedllm_verifier.app import Verifier
from efedllm_verifier.verdict import Verdict
from tests.verifier.audit_lab import PROMPT, Trace
from tests.verifier.audit_network import Network
from tests.verifier.served_node import Lies

NEW = 8
WARM = SamplingSpec(900, 50, 950_000, bytes(range(32)))


async def work(
    network: Network, trace: Trace, lies: dict[int, Lies] | None = None, roots: dict[int, bytes] | None = None
) -> int:
    """Let an epoch of one job pass, with the verifiers' seats active; returns the epoch."""
    epoch = (await network.now()).epoch + 1
    await network.clock.skip_to(epoch, 0.1)
    await network.serve([network.job(trace, epoch, WARM, PROMPT, NEW)], lies)
    await network.post(roots or {})
    return epoch


def unpacked(packed: int) -> Verdict:
    """The verdict in the uint16 that a verifier revealed."""
    return Verdict(packed & 0xFF, packed >> 8 & 0x7F, bool(packed >> 15))


async def verdicts(network: Network, epoch: int) -> dict[str, set[Verdict]]:
    """What the verifiers said about each node."""
    found: dict[str, set[Verdict]] = {}
    for event in await network.admin.history("VerifierCommittee", "Revealed"):
        if event.args["epoch"] == epoch:
            for node, verdict in zip(event.args["nodes"], event.args["verdicts"], strict=True):
                found.setdefault(node, set()).add(unpacked(verdict))
    return found


class CrashError(BaseException):
    """Stands for a kill: nothing of ours may catch it."""


def crash_at(verifier: Verifier, fn: str, *, before: bool) -> None:
    """Die just before the transaction `fn` is sent, or just after it was mined."""
    transport = verifier._chain.transport
    send = transport.send

    async def dying(contract: str, name: str, *args: object) -> object:
        if name == fn and before:
            raise CrashError
        result = await send(contract, name, *args)
        if name == fn:
            raise CrashError
        return result

    transport.send = dying  # type: ignore[method-assign, assignment]


async def start_process(network: Network, index: int) -> asyncio.subprocess.Process:
    """`python -m efedllm_verifier run` until its ready line."""
    config = network.config(index)
    password = config.home / "password"
    password.write_text(config.password)
    process = await asyncio.create_subprocess_exec(
        *(
            sys.executable,
            "-m",
            "efedllm_verifier",
            "run",
            "--rpc",
            config.rpc_url,
            "--deployment",
            str(config.deployment),
        ),
        *("--keystore", str(config.keystore), "--password-file", str(password), "--home", str(config.home)),
        *("--model", config.models[0], "--poll", "0.1", "--listen", "127.0.0.1:0"),
        stdout=asyncio.subprocess.PIPE,
        stderr=(config.home / "log").open("ab"),
    )
    assert process.stdout is not None
    line = json.loads(await asyncio.wait_for(process.stdout.readline(), 120) or b"{}")
    assert line.items() >= {"event": "ready", "address": network.chain_address(index), "pid": process.pid}.items(), (
        config.home / "log"
    ).read_text()
    return process
