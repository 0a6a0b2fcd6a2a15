"""The attack list, numbers 1 to 31, of which 19 is not assigned: the strategies and the lies that play each number.

Numbers without either are played by tests alone.
"""

from __future__ import annotations

from typing import Any

from efedllm_bench.attacks.lies.messages import MESSAGE_ATTACKS
from efedllm_bench.cheats.catalog import ATTACKS

LISTED: dict[int, str] = {
    1: "model_swap",
    2: "precision",
    3: "rank",
    4: "skip, repeat or exchange layers",
    5: "key/value cache",
    6: "fine-tuned weights",
    7: "prompt edited, dropped, injected",
    8: "noise on the output",
    9: "perturbations inside the tolerance, aimed by gradient ascent",
    10: "sampling",
    11: "copied roots",
    12: "replay",
    13: "cheating on some jobs only",
    14: "honest when audited",
    15: "equivocation, mismatched boundaries, bad envelopes",
    16: "omitted or late commitments, padded batches",
    17: "lazy, copying and guessing verifiers",
    18: "colluding verifiers",
    20: "false accuser",
    21: "withheld data, slow answers, no reveal",
    22: "sybils, whitewashing, on-off cheats, exit scams",
    23: "grinding the randomness",
    24: "inputs that strain honest backends, searched",
    25: "malformed bytes and trees",
    26: "drift at the verifier",
    27: "a model whose result depends on the order of sums",
    28: "replay across chains, malleable signatures",
    29: "slashing oneself",
    30: "lying in jobs that break off",
    31: "an honest fleet of different machines",
}


ARITHMETIC = frozenset({13, 14, 23})
"""Numbers whose figures come from the rule of the lot over made-up leaves: no node or verifier runs."""


def coverage() -> list[dict[str, Any]]:
    """One entry per number: the names of strategies plugged into nodes, and of lies in messages."""
    found = []
    for number, title in LISTED.items():
        found.append(
            {
                "number": number,
                "title": title,
                "strategies": [item.name for item in ATTACKS if item.number == number],
                "messages": [item.name for item in MESSAGE_ATTACKS if item.number == number],
                "arithmetic_of_the_lot": number in ARITHMETIC,
            }
        )
    return found
