"""The summary of a generation, as `--report FILE` and `--json` write it."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

from efedllm.chain.amounts import format_amount
from efedllm_client.jobs.generation import GenerationFinished
from efedllm_client.jobs.outcome import JobOutcome


@dataclass(frozen=True)
class GenerationReport:
    """Times in seconds where the name ends in _s, milliseconds in _ms, Unix seconds in _at; amounts in wei."""

    text: str
    prompt: str
    prompt_tokens: int
    tokens: int
    token_ids: list[int]
    tokens_per_second: float
    first_token_s: float
    first_token_at: float
    session_id: str
    job_id: str
    model_id: str
    seed: str
    route: list[dict[str, Any]]
    explored: list[str]
    cost_wei: int
    receipts: list[dict[str, Any]]
    receipts_ok: bool
    receipt_files: list[str]
    faults: list[dict[str, Any]]
    failovers: list[dict[str, str]]
    bytes_in: int
    bytes_out: int
    hop_times: list[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def summary(self) -> str:
        """One line for a person."""
        nodes = " > ".join(f"{hop['node'][:8]}[{hop['lo']}:{hop['hi']}]" for hop in self.route)
        receipts = "receipts ok" if self.receipts_ok else f"RECEIPTS NOT OK ({len(self.faults)} faults)"
        return (
            f"{self.tokens} tokens, {self.tokens_per_second:.1f} tok/s, first after {self.first_token_s:.2f} s, "
            f"{format_amount(self.cost_wei)}, {nodes}, {self._tried()}{receipts}"
        )

    def _tried(self) -> str:
        return "".join(f"tried newcomer {node[:8]}, " for node in self.explored)


def report_of(finished: GenerationFinished, prompt: str, model_id: bytes) -> GenerationReport:
    """The report of a generation. Route, session and job are those of its last job, sums are over all jobs."""
    jobs = finished.jobs
    last = jobs[-1]
    faults = [finding.to_json() for job in jobs for finding in job.findings]
    commits = [signed for job in jobs for signed in job.record.commits if signed is not None]
    return GenerationReport(
        text=finished.text,
        prompt=prompt,
        prompt_tokens=len(finished.prompt_ids),
        tokens=len(finished.token_ids),
        token_ids=list(finished.token_ids),
        tokens_per_second=rate(jobs),
        first_token_s=first_token(jobs),
        first_token_at=first_token_at(jobs),
        session_id="0x" + last.session_id.hex(),
        job_id="0x" + last.record.spec.job_id.hex(),
        model_id="0x" + model_id.hex(),
        seed="0x" + finished.seed.hex(),
        route=[
            {"node": hop.address, "lo": hop.lo, "hi": hop.hi, "latency_ms": round(hop.latency_ms or 0.0, 2)}
            for hop in last.route.hops
        ],
        explored=[job.route.newcomer for job in jobs if job.route.newcomer],
        cost_wei=sum(job.cost for job in jobs),
        receipts=[signed.to_json() for signed in commits],
        receipts_ok=not faults and all(signed is not None for signed in last.record.commits),
        receipt_files=[str(job.receipt) for job in jobs if job.receipt is not None],
        faults=faults,
        failovers=[{"code": job.failure.code, "message": job.failure.message} for job in jobs if job.failure],
        bytes_in=sum(job.record.bytes_in for job in jobs),
        bytes_out=sum(job.record.bytes_out for job in jobs),
        hop_times=[
            {"node": hop.node, "connect_ms": round(connect, 2), "open_ms": round(opened, 2)}
            for hop, connect, opened in zip(last.record.route, last.record.connect_ms, last.record.open_ms, strict=True)
        ],
    )


def rate(jobs: list[JobOutcome]) -> float:
    """Tokens per second from the first token to the last, fail-overs included; 0 when there was only one."""
    first, last = jobs[0].record.first_token, jobs[-1].record.last_token
    firsts = [job.record.first_token for job in jobs if job.record.first_token is not None]
    lasts = [job.record.last_token for job in jobs if job.record.last_token is not None]
    tokens = sum(len(job.record.emitted) for job in jobs)
    first, last = (firsts[0], lasts[-1]) if firsts and lasts else (0.0, 0.0)
    return (tokens - 1) / (last - first) if last > first else 0.0


def first_token(jobs: list[JobOutcome]) -> float:
    """Seconds from starting the first job (session open, nodes not yet connected) to the first token."""
    firsts = [job.record.first_token for job in jobs if job.record.first_token is not None]
    return firsts[0] - jobs[0].record.started if firsts else 0.0


def first_token_at(jobs: list[JobOutcome]) -> float:
    """Unix time of the first token; 0 when there was none."""
    firsts = [job.record.first_token for job in jobs if job.record.first_token is not None]
    return round(time.time() - (time.perf_counter() - firsts[0]), 3) if firsts else 0.0
