"""What to make of which model, and which requests contradict themselves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from efedllm.errors import ConfigError
from efedllm.models.manifest import Method

AUTO_BUDGET = 0.30
SVD_METHODS = ("truncate", "whiten")
EmbedQuant = Literal["none", "int8"]
EngineName = Literal["process", "ray"]


@dataclass(frozen=True)
class CompressOptions:
    """What to make of which model.

    model: directory or hub id of a transformers checkpoint
    out: directory to publish into
    keep: fraction of each layer matrix's parameters its factors keep, in (0, 1]; 1.0 leaves matrices dense
    quant: "int8" stores token embeddings, and the matrices or factors of "truncate", "whiten" and "kfac", as int8 rows
        with float32 scales
    method: "truncate" (plain SVD) or "whiten" (activation-aware SVD), no effect at keep 1.0; "kfac", SVD weighted by
        inputs and by the loss's curvature in the outputs, ranks given out by what they save; "int8" rows;
        "lowrank+int4", 4-bit integers with int8 factors of one rank; "auto", for each matrix the form that loses least
    budget: bytes the layers' matrices may take, as a fraction of those of 16-bit dense weights, in (0, 1]. Sets `keep`
        for "truncate" and "whiten", the rank for "lowrank+int4"; without it that has rank 8, "auto" and "kfac" 0.30
    calibration: text file for all but "truncate" and "int8"; by default calibration.txt beside the model
    calibration_tokens: tokens of it to use
    stack: "whiten" gives matrices that read the same input one shared v where that loses less ("kfac" always weighs it)
    all_factored: "kfac" leaves no matrix dense, even where factors do not pay
    integers: no matrix and no embedding stays in 16 bits, which the exact profile does not take
    heal: steps of distillation against the original on the calibration text, for forms with factors
    measured: folder in which what "auto" and "kfac" measured is kept, so that another budget need not measure again
    engine: "ray" makes the layers as tasks of a Ray cluster, with the same bytes for the same number of threads
    """

    model: str
    out: Path
    keep: float = 1.0
    quant: EmbedQuant = "none"
    method: Method = "truncate"
    calibration: Path | None = None
    calibration_tokens: int = 32_768
    budget: float | None = None
    stack: bool = False
    all_factored: bool = False
    integers: bool = False
    heal: int = 0
    engine: EngineName = "process"
    measured: Path | None = None

    @property
    def int8(self) -> bool:
        """Whether embeddings, and rows or factors of the SVD methods, are int8."""
        return self.quant == "int8" or self.integers

    @property
    def share(self) -> float | None:
        """The budget, with the default of the methods that have one."""
        return AUTO_BUDGET if self.budget is None and self.method in ("auto", "kfac") else self.budget


def check(options: CompressOptions) -> None:
    """Raises ConfigError "bad-options"."""
    if not 0 < options.keep <= 1:
        raise _bad(f"keep is {options.keep}.", "Give a fraction above 0 and up to 1, for example 0.9.")
    if options.quant not in get_args(EmbedQuant):
        raise _bad(f"Unknown quantisation {options.quant}.", "Use none or int8.")
    if options.method not in get_args(Method):
        raise _bad(f"Unknown method {options.method}.", f"Use one of {', '.join(get_args(Method))}.")
    if options.engine not in get_args(EngineName):
        raise _bad(f"Unknown engine {options.engine}.", "Use process or ray.")
    if options.budget is not None and not 0 < options.budget <= 1:
        raise _bad(f"budget is {options.budget}.", "Give a fraction above 0 and up to 1, for example 0.3.")
    if options.keep < 1 and (options.budget is not None or options.method not in SVD_METHODS):
        raise _bad(
            "keep sets the ranks of truncate and whiten, and a budget sets them too.",
            "Give --budget alone, or --keep with --method truncate or whiten.",
        )
    if options.calibration_tokens < 2:
        raise _bad("Calibration needs at least 2 tokens.", "Leave --calibration-tokens out.")
    if options.stack and options.method not in ("whiten", "kfac"):
        raise _bad(f"{options.method} does not share factors.", "Use --stack with --method whiten or kfac.")
    if options.all_factored and options.method != "kfac":
        raise _bad(f"{options.method} decides about dense matrices itself.", "Use --all-factored with --method kfac.")
    if options.heal < 0 or (options.heal and options.method == "int8"):
        raise _bad(
            f"Healing trains factors; {options.heal} steps with {options.method} are not possible.",
            "Use --heal STEPS with a method that has factors.",
        )


def _bad(what: str, hint: str) -> ConfigError:
    return ConfigError("bad-options", what, hint)
