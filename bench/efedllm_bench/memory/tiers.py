"""A shard that does not fit its budget: peak memory and speed by budget, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from efedllm.errors import EfedError
from efedllm_bench.memory.process import Options
from efedllm_bench.memory.synthetic import LlamaShape, publish_synthetic

SHAPE = LlamaShape(768, 3072, 20, 12, 4, 1024, 2048)
_BUDGETS = (100, 140, 200, None)


def measure(say: Callable[[str], None]) -> dict[str, Any]:
    """Both profiles, int8 weights of 179 MB. Megabytes are 10^6 bytes."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="efedllm-bench-memory-") as folder:
        big, warm = Path(folder) / "big", Path(folder) / "warm"
        publish_synthetic(big, SHAPE, "int8")
        publish_synthetic(warm, LlamaShape(64, 128, 2, 4, 2, 96), "int8")
        for exact in (False, True):
            for budget in _BUDGETS:
                say(f"{'exact' if exact else 'float'} engine within {budget or 'any number of'} MB")
                ram = None if budget is None else budget * 10**6
                answer = _process(Options(str(big), str(warm), exact, 0, SHAPE.layers, ram, 64, 2))
                rows.append(
                    {
                        "profile": "exact" if exact else "float",
                        "ram_mb": budget,
                        "peak_over_baseline_mb": round((answer["peak"] - answer["baseline"]) / 1e6, 1),
                        "tokens_per_second": answer["tokens_per_second"],
                        "load_seconds": answer["load_seconds"],
                        "tiers": answer["tiers"],
                        "sha256": answer["sha256"],
                    }
                )
    for profile in ("float", "exact"):
        if len({row["sha256"] for row in rows if row["profile"] == profile}) != 1:
            raise EfedError("bench-failed", f"The {profile} engine computes something else within a budget.")
    return {"shape": asdict(SHAPE), "rows": rows}


def _process(options: Options) -> dict[str, Any]:
    command = [sys.executable, "-m", "efedllm_bench.memory.process", json.dumps(asdict(options))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode != 0:
        raise EfedError("bench-failed", f"An engine could not be measured: {done.stderr.strip()[-300:]}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer
