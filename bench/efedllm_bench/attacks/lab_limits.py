"""The tolerance of the lab's float model, measured as its publisher would measure it.

`efedllm model calibrate --dir DIR --text models/pylib-7m/calibration.txt` does the same for any float model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from efedllm_bench.attacks.lab import BUNDLED, Progress
from efedllm_bench.calibration.measure import CalibrateOptions, calibrate
from efedllm_bench.fleet.machines import machines

TEXT = BUNDLED / "calibration.txt"


def calibrated(published: Path, *, quick: bool, say: Progress) -> dict[str, Any]:
    """Measure a published float model and write its tolerance into its manifest; what was measured, as JSON.

    `quick`: fewer honest machines. Raises ConfigError where `calibrate` refuses the model.
    """
    options = CalibrateOptions(published, (TEXT,), fleet=tuple(machines(eager=True, quick=quick)))
    manifest, report = calibrate(options, lambda text: say(f"float: calibrating: {text}"))
    assert manifest.tolerance is not None
    return {
        "tokens": options.tokens,
        "tolerance": manifest.tolerance.model_dump(mode="json"),
        "honest_max_at": report["honest_max_at"],
        "cheats_in_tau": {name: round(value / manifest.tolerance.tau, 2) for name, value in report["cheats"].items()},
    }
