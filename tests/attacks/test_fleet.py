"""An honest fleet of other machines, and inputs that strain the numerics: nobody is accused."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from efedllm.commitments.canonical import WireDtype
from efedllm_bench.attacks import honest_fleet
from efedllm_bench.attacks.lab import RANGES, Lab, prefilled, prompts
from efedllm_bench.fleet.machines import Machine
from efedllm_bench.fleet.worker import MODES
from efedllm_verifier.statistic import Outcome, compare


def test_an_honest_fleet_is_not_accused(lab: Lab, tmp_path: Path) -> None:
    machines = [Machine(2, "avx2", eager=True)]
    found = honest_fleet.run(lab, tmp_path, machines, texts=prompts(3, 40), decoded=1, long=96, say=lambda _text: None)
    assert found.accused == 0
    assert found.token_hops > 3000
    if lab.profile == "exact":
        assert found.differing_rows == 0
    else:
        # Other kernels really ran: their bits differ.
        assert found.differing_rows > 0
        assert 0 < found.worst < 1


def test_strained_inputs_accuse_nobody(lab: Lab) -> None:
    for hop in range(len(RANGES)):
        engine = lab.engines[hop]
        for name, given in honest_fleet.stress_inputs(lab, hop, 48):
            ours = prefilled(engine, given)
            x = np.asarray(engine.embed(given) if hop == 0 else given, np.float32)
            for mode in ("chunked", "mixed"):
                (rows,) = MODES[mode](engine, [given])
                if lab.profile == "exact":
                    assert rows.tobytes() == ours.tobytes(), (hop, name, mode)
                else:
                    assert compare(rows, ours, x, WireDtype.F32).outcome is Outcome.PASS, (hop, name, mode)
