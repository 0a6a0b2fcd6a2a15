"""A node of an exact model starts without the model code of transformers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from efedllm.checkout import project_root
from tests.engine.exact_helpers import publish_counters

ROOT = project_root()

PROGRAM = """
import sys
from pathlib import Path

import numpy as np

from efedllm.engine.protocol import StepItem
from efedllm.engine.select import load_executor, tier_report

engine = load_executor(Path(sys.argv[1]), 0, 2, ram=None if sys.argv[2] == "all" else int(sys.argv[2]))
states = engine.step([StepItem(engine.new_sequence(), np.arange(3, dtype=np.int32))])[0]
assert states.shape == (3, engine.hidden)
assert (tier_report(engine) is None) == (sys.argv[2] == "all")
code = [name for name in sys.modules if name == "transformers.modeling_utils" or (
    name.startswith("transformers.models.") and "modeling" in name)]
print(sorted(code))
"""


@pytest.mark.parametrize(("family", "ram"), [("llama", "all"), ("gpt2", "all"), ("qwen3", str(256 << 20))])
def test_an_exact_model_loads_no_model_code(tmp_path: Path, family: str, ram: str) -> None:
    publish_counters(tmp_path, family, "packed").with_profile("exact", bytes(32)).save(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), ram], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
