"""Lies about canaries (19) that a verifier or a node judges, told with the node's own code.

As in `messages.py` each takes a real job of the lab and returns the name of the fault or refusal that it met. What
contracts judge is in `opened.py`, whole epochs of real nodes and verifiers in tests/attacks/test_canaries.py.
"""

from __future__ import annotations

import numpy as np

from efedllm.commitments.canary import Canary, canary_place
from efedllm.commitments.canonical import encode
from efedllm.commitments.hashing import keccak
from efedllm.commitments.messages import RouteHop
from efedllm.commitments.signing import Signer
from efedllm.errors import ProtocolError
from efedllm.wire.messages import OpenJobMsg
from efedllm_bench.attacks.lab import CLIENT, DOMAIN, NODES, RANGES, SIGNERS, Job, Lab, decoded, rewritten, session
from efedllm_node.canaries.canary_jobs import Exchange, check_consent

HOP = 1
NONCE = keccak(b"nonce of the node")
STRANGER = Signer(keccak(b"stranger"))


def _consent(job_id: bytes, signer: Signer = CLIENT) -> bytes:
    return signer.sign(Canary(job_id, HOP).digest(DOMAIN))


def _asked(job: Job, consent: bytes, clients: tuple[str, ...] = (CLIENT.address,)) -> str:
    """What a node that takes canaries of `clients` says to an OPEN_JOB with this consent."""
    route = tuple(
        RouteHop(node, signer.address, "http://127.0.0.1:1", *layers)
        for node, signer, layers in zip(NODES, SIGNERS, RANGES, strict=True)
    )
    spec_signature = CLIENT.sign(job.spec.digest(DOMAIN))
    msg = OpenJobMsg(session(), job.spec, spec_signature, None, None, HOP, route, None, consent)
    try:
        check_consent(msg, clients, DOMAIN, slashable=True)
    except ProtocolError as error:
        return error.code
    return ""


def unseen(lab: Lab, job: Job) -> str:
    """A canary as its node computes it, before a verifier that looks."""
    inputs = np.asarray(lab.inputs(job, HOP))
    place = canary_place(_consent(job.spec.job_id), NONCE, len(inputs))
    given = Exchange(place, lab.engines[0].vocab)(0, inputs)
    rows = decoded(lab.engines[HOP], given, len(job.prompt))
    wrong = rewritten(job, HOP + 1, encode(rows, job.wire))
    fault = lab.judge(wrong, HOP).fault
    return "" if fault is None else fault.code


def of_another_job(_lab: Lab, job: Job) -> str:
    """The consent of one job for the next one."""
    return _asked(job, _consent(keccak(job.spec.job_id)))


def of_the_node(_lab: Lab, job: Job) -> str:
    """A node that agrees with itself."""
    return _asked(job, _consent(job.spec.job_id, SIGNERS[HOP]))


def of_a_stranger(_lab: Lab, job: Job) -> str:
    """A client who would have somebody else's node fail its audits."""
    return _asked(job, _consent(job.spec.job_id), (STRANGER.address,))
