"""The base of every cheating executor: it looks like the engine a node was given, and does something else."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from efedllm.engine.protocol import Executor, Float32, Int32, Sequence, StepItem, constants_of
from efedllm.engine.taps import TAP_BYTES, Tapped

Taps = npt.NDArray[np.uint8]


class Wrapped:
    """Delegates everything to `inner`; strategies override `new_sequence`, `step` or `logits`.

    A strategy calls `run` where it wants the real computation, so that a node that needs taps gets the real ones of
    what was really computed, and zeros of what was not.
    """

    def __init__(self, inner: Executor) -> None:
        self.inner = inner
        self._taps: Taps | None = None

    def run(self, batch: SequenceOf[StepItem]) -> list[Float32]:
        """`inner.step`, remembering its taps where it has any."""
        tapped = getattr(self.inner, "step_with_taps", None)
        if tapped is None:
            return self.inner.step(batch)
        results: list[Tapped] = tapped(batch)
        self._taps = results[-1].taps
        return [result.states for result in results]

    def step_with_taps(self, batch: SequenceOf[StepItem]) -> list[Tapped]:
        """As `step`, one item after the other."""
        found: list[Tapped] = []
        for item in batch:
            self._taps = None
            (states,) = self.step([item])
            kept = self._taps
            found.append(Tapped(states, np.zeros((len(states), TAP_BYTES), np.uint8) if kept is None else kept))
        return found

    @property
    def lo(self) -> int:
        return self.inner.lo

    @property
    def hi(self) -> int:
        return self.inner.hi

    @property
    def layers(self) -> int:
        return self.inner.layers

    @property
    def hidden(self) -> int:
        return self.inner.hidden

    @property
    def vocab(self) -> int:
        return self.inner.vocab

    @property
    def max_positions(self) -> int:
        return self.inner.max_positions

    @property
    def has_embedding(self) -> bool:
        return self.inner.has_embedding

    @property
    def has_head(self) -> bool:
        return self.inner.has_head

    @property
    def whole_texts(self) -> bool:
        return self.inner.whole_texts

    @property
    def constants_hash(self) -> bytes | None:
        """A cheat claims the profile it is registered for, whatever it computes in."""
        return constants_of(self.inner)

    @property
    def weight_bytes(self) -> int:
        return self.inner.weight_bytes

    def new_sequence(self) -> Sequence:
        return self.inner.new_sequence()

    def step(self, batch: SequenceOf[StepItem]) -> list[Float32]:
        return self.run(batch)

    def logits(self, hidden: Float32) -> Float32:
        return self.inner.logits(hidden)

    def embed(self, ids: Int32, positions: Int32 | None = None) -> Float32:
        return self.inner.embed(ids, positions)


@dataclass
class Held:
    """A sequence of a cheating executor: the caches of the engines behind it, and what the strategy remembers."""

    caches: list[Sequence]
    owner: Executor | None = None
    last: Float32 | None = None

    @property
    def length(self) -> int:
        return self.caches[0].length

    @property
    def nbytes(self) -> int:
        return sum(cache.nbytes for cache in self.caches)

    def truncate(self, length: int) -> None:
        for cache in self.caches:
            cache.truncate(length)


def held(item: StepItem) -> Held:
    """The sequence of a step, made by a cheating executor."""
    assert isinstance(item.sequence, Held)
    return item.sequence


class Switch(Wrapped):
    """One executor with many strategies: whoever holds it chooses the one that new sequences run under.

    Lets one real node, registered once, serve an honest job and then one job of every cheat.
    """

    def __init__(self, inner: Executor) -> None:
        super().__init__(inner)
        self.chosen: Executor = inner

    def new_sequence(self) -> Sequence:
        return Held([self.chosen.new_sequence()], owner=self.chosen)

    def step(self, batch: SequenceOf[StepItem]) -> list[Float32]:
        out: list[Float32] = []
        for item in batch:
            sequence = held(item)
            assert sequence.owner is not None
            inside = StepItem(sequence.caches[0], item.inputs)
            tapped = getattr(sequence.owner, "step_with_taps", None)
            if tapped is None:
                out += sequence.owner.step([inside])
                continue
            (result,) = tapped([inside])
            self._taps = result.taps
            out.append(result.states)
        return out

    def logits(self, hidden: Float32) -> Float32:
        return self.chosen.logits(hidden)
