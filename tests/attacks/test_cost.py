"""What the cost of audits is measured on does what nodes and verifiers do: it passes honest work and nothing else."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from efedllm.commitments.leaves import chunk_hash
from efedllm.engine.exact.shard import ExactShardEngine
from efedllm.engine.protocol import StepItem
from efedllm_bench.attacks.cost import load
from efedllm_bench.attacks.lab import RANGES, SIGNERS, Lab, decoded, rewritten
from efedllm_bench.attacks.lies.served_again import LeafAudit, ServedHop
from efedllm_bench.attacks.prefill_parts import PRODUCTS, REST, PartClock, prefill_parts, timed_engine


@pytest.mark.parametrize("hop", range(len(RANGES)))
def test_a_hop_served_again_passes_its_audit(lab: Lab, hop: int) -> None:
    job = lab.jobs[0]
    shown = ServedHop(lab, job, hop).serve()
    assert len(shown.leaves) == job.positions
    assert len(shown.envelopes) == job.positions - len(job.prompt) + (hop > 0)
    assert all(record.sender_sig and record.receiver_sig for record in shown.envelopes)
    assert chunk_hash(shown.leaves[-1:]) == shown.envelopes[-1].envelope.chunk_hash
    audit = LeafAudit.of(lab, job, hop, shown)
    audit.whole()
    # Other bytes than the committed ones; rows that nobody signed.
    other = rewritten(job, hop + 1, job.boundaries[hop + 1][:-4] + b"\0\0\x80\x3f")
    assert not replace(audit, job=other).trees()
    unsigned = json.loads(audit.shown)
    for record in unsigned["envelopes"]:
        record["sender_sig"] = "0x" + SIGNERS[hop].sign(bytes(32)).hex()
    assert not replace(audit, shown=json.dumps(unsigned)).signed()


def test_an_engine_that_keeps_time_gives_the_same_bytes(exact_lab: Lab) -> None:
    engine = exact_lab.engines[1]
    assert isinstance(engine, ExactShardEngine)
    inputs, clock = exact_lab.inputs(exact_lab.jobs[0], 1), PartClock()
    timed = timed_engine(engine, clock)
    (tapped,) = timed.step_with_taps([StepItem(timed.new_sequence(), inputs)])
    (plain,) = engine.step_with_taps([StepItem(engine.new_sequence(), inputs)])
    assert tapped.states.tobytes() == plain.states.tobytes()
    assert tapped.taps.tobytes() == plain.taps.tobytes()
    assert decoded(timed, inputs, 5).tobytes() == plain.states.tobytes()
    assert min(clock.seconds.values()) > 0
    parts = prefill_parts(engine, inputs, 1)
    assert set(parts) == {*clock.seconds, REST}
    assert PRODUCTS in parts


@pytest.mark.parametrize("network", ["testnet", "production"])
def test_the_load_is_rate_times_committee_times_ratio(network: str) -> None:
    found = load(network, 0.1)
    assert found.share == pytest.approx(found.rate * found.committee * 0.1, abs=2e-4)
    assert load(network, 0.2).share == pytest.approx(2 * found.share, abs=2e-4)
