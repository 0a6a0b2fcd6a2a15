"""One forward pass over chunks of several jobs: layers, canonical bytes, sampled tokens.

Everything here runs on the engine's thread. What fails for one job of a pass fails for no other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeGuard

import numpy as np
import numpy.typing as npt

from efedllm.commitments.canonical import decode, encode
from efedllm.engine.protocol import Executor, StepItem
from efedllm.engine.protocol import Sequence as EngineSequence
from efedllm.engine.taps import TapExecutor
from efedllm.errors import EfedError, ModelError
from efedllm.logs import get_logger
from efedllm.sampling.exact import sample_exact
from efedllm.sampling.float import sample
from efedllm_node.compute.work_item import Inputs, WorkSpec

_States = tuple[npt.NDArray[np.float32], bytes]
"""What a forward pass gives for one chunk: states [n, hidden], and canonical bytes of the taps, if any."""


@dataclass(frozen=True)
class Output:
    """What the engine made of the next `n` positions of a job.

    `inputs`: what went in; `payload`: canonical bytes of the states after the last layer; `token`: sampled from the
    last position, None where that position is not sampled; `taps`: canonical bytes of the taps of an exact model.
    """

    n: int
    inputs: Inputs
    payload: bytes
    token: int | None
    taps: bytes = b""


@dataclass
class EngineJob:
    """What the engine keeps of a job: its cache, made at its first pass, and how many positions it has done."""

    spec: WorkSpec
    sequence: EngineSequence | None = None
    done: int = 0


@dataclass(frozen=True)
class Chunk:
    """The next positions of one job."""

    job: EngineJob
    inputs: Inputs


class EngineStep:
    """Runs chunks through an executor. `exact`: the model is exact, so taps are taken and sampling is in integers.

    Raises ModelError "no-taps" for an exact model whose executor takes none.
    """

    def __init__(self, executor: Executor, *, exact: bool = False) -> None:
        self._executor = executor
        self._tapped: TapExecutor | None = None
        if exact:
            if not _takes_taps(executor):
                raise ModelError("no-taps", "The engine of this exact model takes no taps.")
            self._tapped = executor
        self._sample = sample_exact if exact else sample
        self._log = get_logger("engine")

    @property
    def whole_texts(self) -> bool:
        """Whether each text must run in one pass, as in an encoder."""
        return self._executor.whole_texts

    def run(self, chunks: Sequence[Chunk]) -> list[Output | EfedError]:
        """One output or error for each chunk, in order. An error of the engine never raises."""
        outputs = self._sampled(chunks, [_encoded(c, s) for c, s in zip(chunks, self._states(chunks), strict=True)])
        for chunk, output in zip(chunks, outputs, strict=True):
            if isinstance(output, Output):
                chunk.job.done += output.n
        return outputs

    def _states(self, chunks: Sequence[Chunk]) -> Sequence[_States | EfedError]:
        try:
            return self._forward(chunks)
        except EfedError as error:
            # One job's bad rows must not fail the others; the engine changed nothing.
            return [self._alone(chunk) for chunk in chunks] if len(chunks) > 1 else [error]
        except Exception as error:  # noqa: BLE001 - whatever breaks in an engine ends jobs, never the node
            self._log.exception("forward pass failed", jobs=len(chunks))
            return [_internal(error)] * len(chunks)

    def _alone(self, chunk: Chunk) -> _States | EfedError:
        try:
            return self._forward([chunk])[0]
        except EfedError as error:
            return error

    def _forward(self, chunks: Sequence[Chunk]) -> list[_States]:
        items = []
        for chunk in chunks:
            if chunk.job.sequence is None:
                chunk.job.sequence = self._executor.new_sequence()
            items.append(StepItem(chunk.job.sequence, chunk.inputs))
        if self._tapped is not None:
            return [(result.states, result.taps.tobytes()) for result in self._tapped.step_with_taps(items)]
        return [(states, b"") for states in self._executor.step(items)]

    def _sampled(self, chunks: Sequence[Chunk], outputs: list[Output | EfedError]) -> list[Output | EfedError]:
        """Sample after the last row of each chunk that reaches a sampled position, from the committed bytes."""
        chosen: list[tuple[int, int]] = []
        rows = []
        for i, (chunk, output) in enumerate(zip(chunks, outputs, strict=True)):
            spec = chunk.job.spec
            last = chunk.job.done + len(chunk.inputs) - 1
            if spec.sample_from is None or last < spec.sample_from or isinstance(output, EfedError):
                continue
            rows.append(decode(output.payload, spec.dtype, self._executor.hidden)[-1:])
            chosen.append((i, last + 1))
        if not rows:
            return outputs
        for logits, (i, position) in zip(self._logits(rows), chosen, strict=True):
            if isinstance(logits, EfedError):
                outputs[i] = logits
                continue
            output = outputs[i]
            assert isinstance(output, Output)
            try:
                outputs[i] = replace(output, token=self._sample(logits, chunks[i].job.spec.sampling, position))
            except EfedError as error:
                outputs[i] = error
        return outputs

    def _logits(self, rows: Sequence[npt.NDArray[np.float32]]) -> list[npt.NDArray[np.float32] | EfedError]:
        """Logits [vocab] of each row [1, hidden], or why there are none."""
        try:
            return list(self._executor.logits(np.concatenate(rows)))
        except EfedError as error:
            # One job's row must not fail the others.
            return [self._logits([row])[0] for row in rows] if len(rows) > 1 else [error]
        except Exception as error:  # noqa: BLE001 - as above
            self._log.exception("head failed", jobs=len(rows))
            return [_internal(error)] * len(rows)


def _takes_taps(executor: Executor) -> TypeGuard[TapExecutor]:
    return hasattr(executor, "step_with_taps")


def _encoded(chunk: Chunk, result: _States | EfedError) -> Output | EfedError:
    if isinstance(result, EfedError):
        return result
    states, taps = result
    try:
        return Output(len(chunk.inputs), chunk.inputs, encode(states, chunk.job.spec.dtype), None, taps)
    except EfedError as error:
        return error


def _internal(error: Exception) -> ModelError:
    return ModelError("engine-failed", f"The engine failed: {type(error).__name__}.", "See the node's log.")
