"""One leaf against the published weights: outputs, prompts, and every emitted token."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from efedllm.commitments.canonical import WireDtype, decode, encode
from efedllm.commitments.messages import JobSpec, ids_hash
from efedllm.engine.protocol import StepItem
from efedllm.engine.shard import ShardEngine
from efedllm.sampling.float import SamplingSpec, sample
from efedllm_verifier.leaf import Leaf
from efedllm_verifier.rerun import HopResult, check_tokens, rerun
from efedllm_verifier.statistic import BackendError, Outcome
from tests.verifier.audit_lab import PROMPT, RANGES, Bits, Trace, decode_route, hop_commit, job_spec, load

NEW = 40
LAST = len(RANGES) - 1
GREEDY = SamplingSpec(0, 0, 1_000_000, bytes(32))
WARM = SamplingSpec(900, 50, 950_000, bytes(range(32)))


@pytest.fixture(scope="module")
def engines(published: Path) -> list[ShardEngine]:
    return [load(published, *layers) for layers in RANGES]


@pytest.fixture(scope="module")
def warm_trace(engines: list[ShardEngine]) -> Trace:
    return decode_route(engines, PROMPT, NEW, WireDtype.F32, WARM)


def audit(
    engines: list[ShardEngine],
    hop: int,
    trace: Trace,
    sampling: SamplingSpec = WARM,
    spec: JobSpec | None = None,
    wire: WireDtype = WireDtype.F32,
) -> HopResult:
    spec = spec or job_spec(PROMPT, NEW, wire, sampling)
    commit = hop_commit(spec, hop, len(RANGES), RANGES[hop], trace, engines[hop].hidden)
    leaf = Leaf(commit, b"", b"", None, None, trace.emitted if hop == LAST else None)
    return rerun(engines[hop], leaf, spec, trace.boundaries[hop], trace.boundaries[hop + 1])


@pytest.mark.parametrize("wire", [WireDtype.F32, WireDtype.BF16])
@pytest.mark.parametrize("sampling", [GREEDY, WARM], ids=["greedy", "sampled"])
def test_an_honest_route_passes_at_every_hop(
    engines: list[ShardEngine], wire: WireDtype, sampling: SamplingSpec
) -> None:
    trace = decode_route(engines, PROMPT, NEW, wire, sampling)
    for hop in range(len(RANGES)):
        result = audit(engines, hop, trace, sampling, wire=wire)
        assert result.fault is None
        assert result.statistic is not None
        assert result.statistic.worst < 0.25


@pytest.mark.parametrize("at", [0, 1, NEW // 2, NEW - 1])
def test_a_single_altered_token_is_caught(engines: list[ShardEngine], warm_trace: Trace, at: int) -> None:
    emitted = list(warm_trace.emitted)
    emitted[at] = (emitted[at] + 1) % 4096
    fault = audit(engines, LAST, replace(warm_trace, emitted=tuple(emitted))).fault
    assert fault is not None
    assert (fault.code, fault.outcome) == ("wrong-token", Outcome.SEVERE)
    assert f"position {len(PROMPT) + at}" in fault.detail


def test_a_biased_sampler_is_caught(engines: list[ShardEngine]) -> None:
    def greedy_instead(logits: Bits, _spec: SamplingSpec, _position: int) -> int:
        return int(np.argmax(logits))

    trace = decode_route(engines, PROMPT, NEW, WireDtype.F32, WARM, greedy_instead)
    fault = audit(engines, LAST, trace).fault
    assert fault is not None
    assert fault.code == "wrong-token"


def test_another_seed_is_caught(engines: list[ShardEngine]) -> None:
    def own_luck(logits: Bits, spec: SamplingSpec, position: int) -> int:
        return sample(logits, replace(spec, seed=bytes(32)), position)

    fault = audit(engines, LAST, decode_route(engines, PROMPT, NEW, WireDtype.F32, WARM, own_luck)).fault
    assert fault is not None
    assert fault.code == "wrong-token"


def test_a_near_tie_is_accepted_and_the_doubtful_zone_is_not_severe() -> None:
    class Fixed:
        """The last engine with logits of our choice."""

        def __init__(self, gap: float) -> None:
            self.row = np.zeros(64, dtype=np.float32)
            self.row[5], self.row[9] = 4.0, 4.0 - gap

        def logits(self, hidden: Bits) -> Bits:
            return np.repeat(self.row[None], len(hidden), axis=0)

    spec = job_spec(PROMPT[:1], 1, WireDtype.F32, GREEDY)
    hidden = np.zeros((1, 256), dtype=np.float32)
    outcomes = {}
    for gap in (1e-5, 5e-4, 0.5):
        fault = check_tokens(Fixed(gap), hidden, spec, (9,))  # type: ignore[arg-type]
        outcomes[gap] = None if fault is None else fault.outcome
    assert outcomes == {1e-5: None, 5e-4: Outcome.FAIL, 0.5: Outcome.SEVERE}


@pytest.mark.parametrize(
    ("gaps", "position", "outcome"),
    [
        ({}, 0, None),
        ({70: 5e-4, 90: 5e-4}, 71, Outcome.FAIL),
        ({3: 5e-4, 100: 0.5, 120: 0.5}, 101, Outcome.SEVERE),
    ],
)
def test_the_gravest_token_of_a_long_job_is_reported(
    gaps: dict[int, float], position: int, outcome: Outcome | None
) -> None:
    """`gaps`: how far the logit of the emitted token lies below the highest, by row. More rows than one block."""

    class Given:
        def logits(self, hidden: Bits) -> Bits:
            rows = np.zeros((len(hidden), 64), dtype=np.float32)
            rows[:, 5], rows[:, 9] = 4.0, 4.0 - hidden[:, 0]
            return rows

    hidden = np.zeros((130, 256), dtype=np.float32)
    for row, gap in gaps.items():
        hidden[row, 0] = gap
    spec = job_spec(PROMPT[:1], 130, WireDtype.F32, GREEDY)
    fault = check_tokens(Given(), hidden, spec, (9,) * 130)  # type: ignore[arg-type]
    assert (None if fault is None else fault.outcome) == outcome
    assert fault is None or f"position {position} " in fault.detail


def test_another_prompt_than_the_signed_one_is_caught(engines: list[ShardEngine]) -> None:
    other = (*PROMPT[:5], (PROMPT[5] + 1) % 4096, *PROMPT[6:])
    trace = decode_route(engines, other, NEW, WireDtype.F32, WARM)
    fault = audit(engines, 0, trace, spec=job_spec(PROMPT, NEW, WireDtype.F32, WARM)).fault
    assert fault is not None
    assert (fault.code, fault.outcome) == ("wrong-prompt", Outcome.SEVERE)


def test_a_dropped_prompt_token_is_caught(engines: list[ShardEngine]) -> None:
    trace = decode_route(engines, PROMPT[1:], NEW, WireDtype.F32, WARM)
    fault = audit(engines, 0, trace, spec=job_spec(PROMPT, NEW, WireDtype.F32, WARM)).fault
    assert fault is not None
    assert fault.code == "wrong-prompt"


def test_ids_outside_the_vocabulary_are_a_fault_not_a_crash(engines: list[ShardEngine], warm_trace: Trace) -> None:
    ids = decode(warm_trace.boundaries[0], WireDtype.I32, 1).copy()
    ids[-1, 0] = 4096
    bad = replace(warm_trace, boundaries=(encode(ids, WireDtype.I32), *warm_trace.boundaries[1:]))
    fault = audit(engines, 0, bad).fault
    assert fault is not None
    assert fault.code == "bad-input-bytes"


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7F800000, 0x80000000], ids=["nan", "inf", "minus zero"])
def test_committed_bytes_that_are_not_canonical_are_severe(
    engines: list[ShardEngine], warm_trace: Trace, bits: int
) -> None:
    words = np.frombuffer(warm_trace.boundaries[2], dtype="<u4").copy()
    words[777] = bits
    bad = replace(warm_trace, boundaries=(*warm_trace.boundaries[:2], words.tobytes(), warm_trace.boundaries[3]))
    written, read = audit(engines, 1, bad).fault, audit(engines, 2, bad).fault
    assert written is not None
    assert (written.code, written.outcome) == ("bad-output-bytes", Outcome.SEVERE)
    assert read is not None
    assert (read.code, read.outcome) == ("bad-input-bytes", Outcome.FAIL)


def test_outputs_of_another_job_are_caught(engines: list[ShardEngine], warm_trace: Trace) -> None:
    other = decode_route(engines, PROMPT[::-1], NEW, WireDtype.F32, WARM)
    mixed = replace(warm_trace, boundaries=(*warm_trace.boundaries[:2], other.boundaries[2], warm_trace.boundaries[3]))
    fault = audit(engines, 1, mixed).fault
    assert fault is not None
    assert (fault.code, fault.outcome) == ("wrong-output", Outcome.SEVERE)


def test_more_positions_than_the_model_has_are_a_fault(engines: list[ShardEngine], warm_trace: Trace) -> None:
    spec = job_spec(PROMPT, 4000, WireDtype.F32, WARM)
    commit = replace(hop_commit(spec, 1, 3, RANGES[1], warm_trace, 256), tokens=3000)
    row = bytes(4 * 256)
    result = rerun(engines[1], Leaf(commit, b"", b""), spec, row * 3000, row * 3000)
    assert result.fault is not None
    assert result.fault.code == "context-exceeded"


def test_a_node_that_is_the_whole_route_must_feed_what_it_emitted(published: Path) -> None:
    whole = load(published, 0, 8)
    trace = decode_route([whole], PROMPT, NEW, WireDtype.F32, WARM)
    spec = job_spec(PROMPT, NEW, WireDtype.F32, WARM)

    def leaf_of(emitted: tuple[int, ...]) -> Leaf:
        commit = hop_commit(spec, 0, 1, (0, 8), replace(trace, emitted=emitted), 256)
        return Leaf(commit, b"", b"", None, None, emitted)

    assert rerun(whole, leaf_of(trace.emitted), spec, *trace.boundaries).fault is None
    told = (*trace.emitted[:3], 7, *trace.emitted[4:])
    fault = rerun(whole, leaf_of(told), spec, *trace.boundaries).fault
    assert fault is not None
    assert fault.code == "wrong-tokens-fed"


def test_a_job_cancelled_inside_its_prompt_is_judged_by_the_shown_prompt(engines: list[ShardEngine]) -> None:
    trace = decode_route(engines, PROMPT[:10], 1, WireDtype.F32, WARM)
    spec = job_spec(PROMPT, NEW, WireDtype.F32, WARM)
    commit = hop_commit(spec, 0, 3, RANGES[0], trace, 256)
    shown = rerun(engines[0], Leaf(commit, b"", b"", prompt=PROMPT), spec, *trace.boundaries[:2])
    assert shown.fault is None
    hidden = rerun(engines[0], Leaf(commit, b"", b""), spec, *trace.boundaries[:2])
    assert hidden.fault is not None
    assert hidden.fault.code == "wrong-prompt"


def test_an_engine_error_of_ours_is_not_the_nodes_fault(engines: list[ShardEngine], warm_trace: Trace) -> None:
    # The wrong executor: it starts at the embedding and cannot take hidden states.
    spec = job_spec(PROMPT, NEW, WireDtype.F32, WARM)
    commit = hop_commit(spec, 1, 3, RANGES[1], warm_trace, 256)
    with pytest.raises(BackendError):
        rerun(engines[0], Leaf(commit, b"", b""), spec, warm_trace.boundaries[1], warm_trace.boundaries[2])


def test_inputs_that_overflow_the_engine_are_the_nodes_fault(engines: list[ShardEngine], warm_trace: Trace) -> None:
    """Abstaining from all of a node's work would be its reward for one poisoned leaf."""

    class Overflowing:
        """The engine of a model whose norm overflows on large rows, as layer norm does."""

        def __getattr__(self, name: str) -> object:
            return getattr(engines[1], name)

        def step(self, batch: list[StepItem]) -> list[Bits]:
            huge = any(np.abs(item.inputs).max() > 1e30 for item in batch)
            return [np.full_like(item.inputs, np.nan) for item in batch] if huge else engines[1].step(batch)

    spec = job_spec(PROMPT, NEW, WireDtype.F32, WARM)
    commit = hop_commit(spec, 1, 3, RANGES[1], warm_trace, 256)
    poison = np.full(len(warm_trace.boundaries[1]) // 4, 3e38, dtype="<f4").tobytes()
    leaf = Leaf(commit, b"", b"")
    fault = rerun(Overflowing(), leaf, spec, poison, warm_trace.boundaries[2]).fault  # type: ignore[arg-type]
    assert fault is not None
    assert (fault.code, fault.outcome) == ("not-finite", Outcome.FAIL)


def test_an_engine_that_overflows_on_anything_is_not_the_nodes_fault(
    engines: list[ShardEngine], warm_trace: Trace
) -> None:
    class Broken:
        def __getattr__(self, name: str) -> object:
            return getattr(engines[1], name)

        def step(self, batch: list[StepItem]) -> list[Bits]:
            return [np.full_like(item.inputs, np.inf) for item in batch]

    spec = job_spec(PROMPT, NEW, WireDtype.F32, WARM)
    commit = hop_commit(spec, 1, 3, RANGES[1], warm_trace, 256)
    with pytest.raises(BackendError):
        rerun(Broken(), Leaf(commit, b"", b""), spec, *warm_trace.boundaries[1:3])  # type: ignore[arg-type]


def test_the_prompt_hash_is_of_the_ids() -> None:
    assert job_spec(PROMPT, 1, WireDtype.F32, GREEDY).prompt_hash == ids_hash(PROMPT)
