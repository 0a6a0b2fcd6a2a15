"""What compressing one matrix takes, by its size, up to those of a 7B model; from there to 70B; and what Ray gives."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from efedllm.compression import CompressOptions, compress
from efedllm.compression.compare import losses
from efedllm.compression.encode import quantize_rows
from efedllm.compression.factor import truncate, whiten_inputs, whiten_outputs
from efedllm.compression.input_moments import Inputs
from efedllm.compression.lowbit import quantize
from efedllm.compression.options import AUTO_BUDGET
from efedllm.compression.plan import LADDER, allocate, largest_rank
from efedllm.compression.planner import RANK
from efedllm.compression.weighted_factors import nested_factors

SIZES = ((512, 512), (1024, 1024), (2048, 2048), (5632, 2048), (2048, 5632), (4096, 4096), (11008, 4096), (4096, 11008))
QUICK = SIZES[:3]
# Llama-2-70B: hidden 8192, feed-forward 28672, 8 key/value heads of 128, 80 layers.
MODEL_70B = tuple([(8192, 8192)] * 2 + [(1024, 8192)] * 2 + [(28672, 8192)] * 2 + [(8192, 28672)])
LAYERS_70B = 80
_TOKENS = 512

Say = Callable[[str], None]


def run(quick: bool, earlier: dict[str, Any], say: Say, keep: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Seconds of wall and of processor time for each method and size, with torch's threads. Sizes that `earlier` has
    for as many threads are not measured again; `keep` is called with the result so far after each."""
    threads = torch.get_num_threads()
    rows: list[dict[str, Any]] = list(earlier.get("rows", [])) if earlier.get("threads") == threads else []
    known = {(row["method"], row["rows"], row["cols"]) for row in rows}
    result = _result(threads, rows)
    for shape in QUICK if quick else SIZES:
        methods = {name: one for name, one in _methods(*shape).items() if (name, *shape) not in known}
        if not methods:
            continue
        weight, gram, outputs = _problem(*shape)
        for name, method in methods.items():
            wall, processor = time.perf_counter(), time.process_time()
            method(weight, gram, outputs)
            row = {
                "method": name,
                "rows": shape[0],
                "cols": shape[1],
                "seconds": round(time.perf_counter() - wall, 3),
                "cpu_seconds": round(time.process_time() - processor, 3),
            }
            say(f"{shape[0]} x {shape[1]} {name}: {row['seconds']} s, {row['cpu_seconds']} s of processor time")
            rows.append(row)
            result = _result(threads, rows)
            keep(result)
    return result


def _result(threads: int, rows: list[dict[str, Any]]) -> dict[str, Any]:
    ordered = sorted(rows, key=lambda row: (row["rows"] * row["cols"], row["rows"], row["method"]))
    return {"threads": threads, "rows": ordered, "extrapolated_70b": _extrapolated(ordered)}


def _problem(rows: int, cols: int) -> tuple[Tensor, Tensor, Tensor]:
    """A random weight; second moments with a spectrum as activations and gradients have one."""
    generator = torch.Generator().manual_seed(rows + cols)

    def moment(size: int) -> Tensor:
        x = torch.randn(_TOKENS, size, generator=generator) * torch.logspace(0, -2, size)
        return ((x.T @ x) / _TOKENS).double() + 1e-4 * torch.eye(size, dtype=torch.float64)

    return torch.randn(rows, cols, generator=generator), moment(cols), moment(rows)


def _methods(rows: int, cols: int) -> dict[str, Callable[[Tensor, Tensor, Tensor], object]]:
    rank = largest_rank([(rows, cols)], int8=True) // 2

    def whiten(w: Tensor, g: Tensor, _: Tensor) -> object:
        if rows >= cols:
            return whiten_inputs(w, g, rank)
        wide = w.double()
        return whiten_outputs(w, wide @ g @ wide.T, float(g.diagonal().mean()), rank)

    def kfac(w: Tensor, g: Tensor, c: Tensor) -> object:
        return nested_factors([w], g, [c], 2 * rank).at(rank, [rows])

    def auto(w: Tensor, g: Tensor, c: Tensor) -> object:
        """Every form compared, then the best within the default budget made, from a moment of its own."""
        found = losses({"w": w}, {"w": c.diagonal()}, Inputs.of(g), 2, LADDER)
        choice = allocate({"w": (rows, cols)}, found, AUTO_BUDGET)["w"]
        if choice.bits >= 8:
            return quantize_rows(w) if choice.bits == 8 else w
        return quantize(w, Inputs.of(g), choice.bits, group=choice.group, rank=choice.rank)

    return {
        "truncate": lambda w, _g, _c: truncate(w, rank),
        "whiten": whiten,
        "kfac": kfac,
        "lowrank+int4": lambda w, g, _: quantize(w, Inputs.of(g), 4, rank=RANK),
        "auto": auto,
    }


def _extrapolated(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Processor seconds c * (m n min(m, n))^p fitted to the sizes from 1024 on, then summed over a 70B model."""
    found = {}
    for name in dict.fromkeys(row["method"] for row in rows):
        points = [
            (math.log(_work(row["rows"], row["cols"])), math.log(row["cpu_seconds"]))
            for row in rows
            if row["method"] == name and min(row["rows"], row["cols"]) >= 1024 and row["cpu_seconds"] > 0
        ]
        if len({size for size, _ in points}) < 2:
            continue
        mean_x, mean_y = (sum(p[i] for p in points) / len(points) for i in (0, 1))
        power = sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)
        layer = sum(math.exp(mean_y + power * (math.log(_work(*shape)) - mean_x)) for shape in MODEL_70B)
        found[name] = {
            "power": round(power, 3),
            "cpu_hours_per_layer": round(layer / 3600, 3),
            "cpu_hours": round(LAYERS_70B * layer / 3600, 1),
        }
    return found


def _work(rows: int, cols: int) -> float:
    return float(rows) * cols * min(rows, cols)


def ray_speed_up(model: Path, workers: int, say: Say) -> dict[str, Any]:
    """The bundled model in this process with one thread, and as tasks on `workers` processes with one thread each."""
    import ray

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds: dict[str, list[float]] = {"process": [], "ray": []}
    roots = set()
    try:
        ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, object_store_memory=200 << 20)
        with tempfile.TemporaryDirectory() as folder:
            # The first tasks pay for starting the workers.
            for turn in range(2):
                for engine in ("ray", "process"):
                    start = time.perf_counter()
                    options = CompressOptions(
                        str(model),
                        Path(folder) / f"{engine}-{turn}",
                        method="auto",
                        budget=0.3,
                        calibration_tokens=8192,
                        engine="ray" if engine == "ray" else "process",
                    )
                    roots.add(compress(options).weights_root)
                    seconds[engine].append(time.perf_counter() - start)
                    say(f"{engine}: {seconds[engine][-1]:.1f} s")
    finally:
        ray.shutdown()
        torch.set_num_threads(threads)
    best = {engine: min(times) for engine, times in seconds.items()}
    return {
        "workers": workers,
        "threads_each": 1,
        "seconds": {engine: round(value, 2) for engine, value in best.items()},
        "speed_up": round(best["process"] / best["ray"], 3),
        "same_weights_root": len(roots) == 1,
    }
