"""Hop 0 computes another prompt than the client signed (7), and commits to it."""

from __future__ import annotations

from dataclasses import replace

from efedllm.sampling.float import SamplingSpec
from efedllm_bench.attacks.lab import Lab, LabJob
from efedllm_bench.attacks.lies.judges import commit_fault


def one_token_edited(lab: Lab, job: LabJob) -> str:
    """The fourth token is another one."""
    return _other_prompt(lab, job, (*job.prompt[:3], (job.prompt[3] + 1) % 4096, *job.prompt[4:]))


def first_token_dropped(lab: Lab, job: LabJob) -> str:
    """The prompt without its first token."""
    return _other_prompt(lab, job, job.prompt[1:])


def tokens_injected(lab: Lab, job: LabJob) -> str:
    """Three more tokens before the prompt."""
    return _other_prompt(lab, job, (11, 12, 13, *job.prompt))


def _other_prompt(lab: Lab, job: LabJob, prompt: tuple[int, ...]) -> str:
    """Code of the fault of a hop 0 that computed `prompt` and shows the prompt of `job`."""
    spec = SamplingSpec.from_job(job.spec)
    (made,) = lab.generate([prompt], len(job.emitted), sampling=spec)
    return commit_fault(lab, replace(made, spec=job.spec, prompt=job.prompt), 0)
