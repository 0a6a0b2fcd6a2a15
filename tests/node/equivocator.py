"""A node that signs one commitment for its batch and the client, and another one for the next hop.

`python -m tests.node.equivocator run ...` takes the flags of `python -m efedllm_node run`. What the next hop gets names
another input; it fits all that the next hop can check.
"""

from __future__ import annotations

from dataclasses import replace

from efedllm.commitments.hashing import keccak
from efedllm.wire.messages import CommitMsg, Message
from efedllm_node import cli
from efedllm_node.jobs.job_state import JobCore

_forward = JobCore._forward


async def _forward_another(job: JobCore, message: Message) -> None:
    if isinstance(message, CommitMsg):
        services = job._services
        other = replace(message.commit, in_root=keccak(message.commit.in_root))
        message = CommitMsg(other, services.signer.sign(other.digest(services.domain)))
    await _forward(job, message)


if __name__ == "__main__":
    JobCore._forward = _forward_another  # type: ignore[method-assign, assignment]
    cli.app()
