"""A verifier whose backend changed since its golden vector (26)."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from efedllm_bench.attacks.lab import Lab, LabJob
from efedllm_bench.cheats.outputs import EditedOutput, noisy
from efedllm_verifier.engine_cache import self_test
from efedllm_verifier.statistic import BackendError


def changed_backend(lab: Lab, _job: LabJob) -> str:
    """A verifier whose backend changed since its golden vector: it must abstain, not accuse."""
    with TemporaryDirectory() as folder:
        golden = Path(folder) / "golden.npy"
        self_test(lab.engines[1], golden)
        try:
            self_test(EditedOutput(lab.engines[1], noisy(1e-4)), golden)
        except BackendError:
            return "abstains"
    return ""
