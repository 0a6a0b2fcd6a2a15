"""The tolerance of a published float model: how far honest machines stray, and how far the nearest cheat does.

Two engines that compute one model in floats differ by rounding. A verifier that compares their outputs needs a limit,
and a limit that anybody could choose freely would let somebody accuse the honest: so the publisher measures it, and it
is part of the manifest whose hash is registered on chain.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

ATTACK_MARGIN = 3.0
"""The weakest attack must be this many times above the limit before anybody loses stake by it."""

LEAST_TAU = 3e-5
"""Three times what honest float32 machines were seen to stray on the bundled model (1.0e-5: contexts of 1000 positions,
`efedllm bench attacks`): a publisher must not be able to name a limit that ordinary machines exceed, and have whoever
serves its model slashed. A model made to stray further can still be given a limit too low for it: measure a foreign
float model (`efedllm model calibrate`) before serving it."""

MOST_TAU = 1.0
"""A hop that computes nothing and hands on its input deviates by exactly 1: no limit may let that pass."""

LEAST_ROUNDING = 8 * 2.0**-24
"""What float32 rounding of a large residual alone may cost, relative to the row."""

_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Name = Annotated[str, Field(min_length=1, max_length=200)]
ComputeDtype = Literal["float32", "bfloat16"]


class Tolerance(BaseModel):
    """All deviations are RMS differences of rows over the RMS of what the layers added to them, without unit.

    `tau`: the limit, apart from the rounding of the wire; `rounding`: the deviation that reading the wire's numbers
    may add. Honest machines deviated by at most `honest_max` in `honest_count` rows, the natural logarithm of their
    deviations having mean `log_mean` and standard deviation `log_sd`. The weakest attack tried, `weakest_attack`,
    deviated by `attack_min` at least: attacks save work or serve another model, noise that does neither is none.
    `settings` names the ways of computing that were compared; `evidence` is the sha256 of
    the measurement's report; `compute` the dtype all of them computed in.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    tau: Annotated[float, Field(ge=LEAST_TAU, lt=MOST_TAU, allow_inf_nan=False)]
    rounding: Annotated[float, Field(ge=LEAST_ROUNDING, allow_inf_nan=False)]
    honest_max: Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
    honest_count: Annotated[int, Field(gt=0, lt=1 << 53)]
    log_mean: _Finite
    log_sd: Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
    attack_min: _Positive
    weakest_attack: _Name
    settings: Annotated[tuple[_Name, ...], Field(min_length=2)]
    evidence: _Sha256
    slashable: bool
    compute: ComputeDtype

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.honest_max > self.tau:
            raise ValueError("honest machines exceed the limit")
        if self.honest_max >= self.attack_min:
            raise ValueError("honest machines stray as far as the weakest attack")
        if self.slashable != (self.attack_min >= ATTACK_MARGIN * self.tau):
            raise ValueError(
                f"a limit is slashable if and only if the weakest attack is {ATTACK_MARGIN:g} times above it"
            )
        return self
