"""From measured deviations to the limit of a float model."""

from __future__ import annotations

import math

from efedllm.models.tolerance import LEAST_TAU

HONEST_MARGIN = 8.0
"""The limit is at least this many times the largest honest deviation (verification design, 3.7)."""
SIGMAS = 10.0
"""And at least this many standard deviations above the mean, of the logarithms."""


def tau_of(honest_max: float, log_mean: float, log_sd: float) -> float:
    """The limit tau for honest deviations of at most `honest_max`, whose natural logarithms have this mean and standard
    deviation. Never below LEAST_TAU; the logarithms alone never ask for more than 1."""
    return max(HONEST_MARGIN * honest_max, math.exp(min(log_mean + SIGMAS * log_sd, 0.0)), LEAST_TAU)
