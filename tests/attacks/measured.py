"""The tolerance of the float model that the attack tests run on. Measured, not chosen:

`python -m tests.attacks.measured` publishes that model, calibrates it and writes tolerance.json beside this file.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from efedllm.models.tolerance import Tolerance
from efedllm_bench.attacks.lab import publish
from efedllm_bench.attacks.lab_limits import calibrated
from efedllm_bench.cheats.catalog import NumericProfile

FILE = Path(__file__).with_name("tolerance.json")


def tolerance() -> Tolerance:
    """What was measured."""
    return Tolerance.model_validate_json(json.dumps(json.loads(FILE.read_text())["tolerance"]))


def published(profile: NumericProfile, work: Path, measured: Tolerance | None) -> Path:
    """The model of the tests: that of the bench in the float profile, as one cut to half of its parameters strays so
    far that its calibration slashes nobody; cut by plain SVD in the exact profile, which is quicker.
    """
    if profile == "exact":
        return publish(profile, work, keep=0.5, whiten=False)
    return publish(profile, work, tolerance=measured)


def main() -> None:
    """Measure again."""
    with tempfile.TemporaryDirectory() as folder:
        found = calibrated(published("float", Path(folder), None), quick=False, say=print)
    FILE.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
