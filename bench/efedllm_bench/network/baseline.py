"""What the network is compared with: the same checkpoint under transformers, in one process."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM


@dataclass(frozen=True)
class Timed:
    """One generation: tokens per second from the first new token to the last, and the new token ids."""

    tokens_per_second: float
    token_ids: tuple[int, ...]


class Baseline:
    """`transformers.generate`, greedy, float32, one compute thread."""

    def __init__(self, checkpoint: Path) -> None:
        torch.set_num_threads(1)
        self._model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()

    def generate(self, prompt_ids: list[int], tokens: int) -> Timed:
        """Continue `prompt_ids` by exactly `tokens` tokens."""
        clock = _Clock()
        ids = torch.tensor([prompt_ids])
        with torch.inference_mode():
            out = self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
                pad_token_id=0,
                streamer=clock,
            )
        new = tuple(int(token) for token in out[0, len(prompt_ids) :])
        return Timed((len(new) - 1) / (clock.last - clock.first), new)


class _Clock:
    """A streamer that notes when tokens arrive; the first `put` is the prompt."""

    def __init__(self) -> None:
        self.first = 0.0
        self.last = 0.0
        self._prompt_seen = False

    def put(self, _value: object) -> None:
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        self.last = time.perf_counter()
        self.first = self.first or self.last

    def end(self) -> None:
        """Nothing to flush."""
