"""Answers of the code that judges lies: the fault that a verifier names, the error that a check raises."""

from __future__ import annotations

from collections.abc import Callable

from efedllm.errors import ProtocolError
from efedllm_bench.attacks.lab import Lab, LabJob
from efedllm_verifier.rerun import HopResult


def code_of(result: HopResult) -> str:
    """Code of the fault that an audit found; "" for none."""
    return "" if result.fault is None else result.fault.code


def commit_fault(lab: Lab, job: LabJob, hop: int, **changes: object) -> str:
    """Code of the fault of hop `hop`, which commits to `job` with these members of HopCommit changed."""
    return code_of(lab.judge(job, hop, lab.leaf(job, hop, lab.commit(job, hop, **changes))))


def refusal(check: Callable[[], object]) -> str:
    """Code of the ProtocolError that `check` raises; "" where it raises none."""
    try:
        check()
    except ProtocolError as error:
        return error.code
    return ""
