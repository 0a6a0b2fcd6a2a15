"""What every method of compression costs the bundled model: perplexity and top-1 on two texts nothing was tuned on.

The ratios, each under its own name:
rank_dropped: fraction of the singular values left out, over all layer matrices; what the SVD literature calls the ratio
params_saved: fraction of the numbers that are no longer stored (a factor's entry and an integer each count as one)
bytes_saved: fraction of the bytes of 16-bit weights, scales counted; the only one that memory and wire notice
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from efedllm.compression import CompressOptions, compress
from efedllm.compression.heal import sparkline
from efedllm.compression.report import load_report
from efedllm.engine.protocol import StepItem
from efedllm.engine.shard import ShardEngine
from efedllm.models.manifest import MAX_LAYERS, Manifest, Method

WINDOW = 512
TOKENS = 12_288
FLOORS = (0.01, 0.02, 0.05)
"""Rises of the perplexity for which the fewest bytes are looked for."""


@dataclass(frozen=True)
class CompressionCase:
    """`name` is the curve, `saved` the fraction of bytes to save; `int8` whether SVD factors are int8."""

    name: str
    method: Method
    saved: float
    int8: bool = True
    all_factored: bool = False
    stack: bool = False
    heal: int = 0


def cases(quick: bool) -> list[CompressionCase]:
    """Every method over the range of bytes saved in which it says something."""
    found = [CompressionCase("int8", "int8", 0.49)]

    def curve(name: str, method: Method, points: tuple[float, ...], quickly: tuple[float, ...], **more: Any) -> None:
        found.extend(CompressionCase(name, method, saved, **more) for saved in (quickly if quick else points))

    curve("auto", "auto", (0.1, 0.3, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9), (0.7,))
    curve("lowrank+int4", "lowrank+int4", (0.6, 0.65, 0.7), (0.7,))
    curve("kfac, int8", "kfac", (0.55, 0.6, 0.7, 0.8, 0.9), (0.6,))
    curve("kfac, int8, all factored", "kfac", (0.55, 0.6, 0.7, 0.8, 0.9), (), all_factored=True)
    curve("whiten, int8", "whiten", (0.55, 0.6, 0.7, 0.8, 0.9), (0.6,))
    curve("whiten, int8, shared v", "whiten", (0.6, 0.7, 0.8), (), stack=True)
    curve("whiten", "whiten", (0.1, 0.3, 0.5, 0.7, 0.9), (0.3,), int8=False)
    curve("truncate", "truncate", (0.1, 0.3, 0.5, 0.7, 0.9), (0.3,), int8=False)
    curve("truncate, int8", "truncate", (0.6, 0.7), (), int8=True)
    return found


def healed_cases(steps: int) -> list[CompressionCase]:
    """What healing adds; minutes each."""
    return [
        CompressionCase("kfac, int8, healed", "kfac", 0.6, heal=steps),
        CompressionCase("kfac, int8, all factored, healed", "kfac", 0.6, all_factored=True, heal=steps),
        CompressionCase("kfac, int8, healed", "kfac", 0.8, heal=steps),
    ]


@dataclass(frozen=True)
class _Text:
    """Windows of ids; at each position the original's log probability of the next token, and its favourite."""

    windows: tuple[Tensor, ...]
    logs: tuple[Tensor, ...]
    top: tuple[Tensor, ...]

    @property
    def perplexity(self) -> float:
        return math.exp(-float(torch.cat(self.logs).mean()))


Say = Callable[[str], None]


def run(
    model: Path,
    chosen: list[CompressionCase],
    earlier: dict[str, Any],
    say: Say,
    keep: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Measure the cases that `earlier` (a result of the same model and settings) does not have; `keep` is called with
    the result so far after each."""
    disable_progress_bar()
    identity = _identity(model)
    texts = _texts(model, say)
    header: dict[str, Any] = {
        "identity": identity,
        "model": model.name,
        "window": WINDOW,
        "tokens": {name: sum(len(w) - 1 for w in text.windows) for name, text in texts.items()},
        "perplexity_original": {name: round(text.perplexity, 4) for name, text in texts.items()},
    }
    same = earlier.get("identity") == identity
    rows: dict[str, dict[str, Any]] = {row["case"]: row for row in earlier.get("rows", [])} if same else {}
    result = _result(header, rows)
    with tempfile.TemporaryDirectory() as folder:
        for number, case in enumerate(chosen):
            key = _key(case)
            if key in rows:
                continue
            say(f"{number + 1}/{len(chosen)} {case.name}, {case.saved:.0%} of the bytes saved")
            rows[key] = _measure(model, case, texts, Path(folder), key)
            result = _result(header, rows)
            keep(result)
    return result


def _result(header: dict[str, Any], rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    ordered = sorted(rows.values(), key=lambda row: (row["name"], row["bytes_saved"]))
    return {**header, "rows": ordered, "optimal": optimal(ordered)}


def optimal(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each floor the row that saves most bytes while no text's perplexity rises by more."""
    found = []
    for floor in FLOORS:
        fitting = [row for row in rows if max(row["increase"].values()) <= floor]
        if fitting:
            best = max(fitting, key=lambda row: float(row["bytes_saved"]))
            found.append({"floor": floor, **{k: best[k] for k in ("name", "bytes_saved", "increase", "top1")}})
    return found


def _key(case: CompressionCase) -> str:
    return json.dumps(asdict(case), sort_keys=True)


def _identity(model: Path) -> str:
    digest = hashlib.sha256(f"{WINDOW} {TOKENS}".encode())
    for name in ("model.safetensors", "calibration.txt", "held-out.txt", "held-out-2.txt"):
        digest.update(hashlib.sha256((model / name).read_bytes()).digest())
    return digest.hexdigest()


def _texts(model: Path, say: Say) -> dict[str, _Text]:
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    original = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, local_files_only=True).eval()
    texts = {}
    for name in ("held-out.txt", "held-out-2.txt"):
        say(f"the original on {name}")
        ids = torch.tensor(tokenizer.encode((model / name).read_text("utf-8")).ids[:TOKENS])
        windows = tuple(part for part in torch.split(ids, WINDOW) if len(part) > 1)
        logs, top = [], []
        for window in windows:
            with torch.inference_mode():
                scores = torch.log_softmax(original(window.unsqueeze(0)).logits[0, :-1].double(), dim=1)
            logs.append(scores.gather(1, window[1:].unsqueeze(1)).squeeze(1))
            top.append(scores.argmax(dim=1))
        texts[name] = _Text(windows, tuple(logs), tuple(top))
    return texts


def _measure(model: Path, case: CompressionCase, texts: dict[str, _Text], folder: Path, key: str) -> dict[str, Any]:
    out = folder / hashlib.sha256(key.encode()).hexdigest()[:12]
    manifest = compress(
        CompressOptions(
            str(model),
            out,
            method=case.method,
            budget=None if case.method == "int8" else round(1 - case.saved, 6),
            quant="int8" if case.int8 else "none",
            stack=case.stack,
            all_factored=case.all_factored,
            heal=case.heal,
            measured=folder / "measured",
        )
    )
    report = load_report(out, manifest.weights_root)
    assert report is not None
    engine = ShardEngine.load(out, 0, manifest.layers, verify_root=manifest.root)
    row: dict[str, Any] = {"case": key, "name": case.name, "method": case.method, **ratios(manifest)}
    increase, agreement = {}, {}
    for name, text in texts.items():
        increase[name], agreement[name] = _quality(engine, text)
    row |= {"increase": increase, "top1": agreement, "seconds": round(report.seconds, 1)}
    if report.heal is not None:
        losses = [round(loss, 5) for loss in report.heal.losses]
        row["heal"] = {
            "steps": case.heal,
            "before": round(report.heal.before, 5),
            "after": round(report.heal.after, 5),
            "losses": losses,
            "curve": sparkline(losses),
        }
    return row


def _quality(engine: ShardEngine, text: _Text) -> tuple[float, float]:
    """Rise of the perplexity as a fraction, and the fraction of positions with the same favourite."""
    lost = agreed = count = 0.0
    for window, logs, top in zip(text.windows, text.logs, text.top, strict=True):
        sequence = engine.new_sequence()
        states = engine.step([StepItem(sequence, window.numpy().astype(np.int32))])[0]
        scores = torch.log_softmax(torch.from_numpy(engine.logits(states))[:-1].double(), dim=1)
        lost += float((logs - scores.gather(1, window[1:].unsqueeze(1)).squeeze(1)).sum())
        agreed += int((scores.argmax(dim=1) == top).sum())
        count += len(logs)
    return round(math.expm1(lost / count), 6), round(agreed / count, 5)


def ratios(manifest: Manifest) -> dict[str, float]:
    """The three ratios of the layers' matrices."""
    matrices = [t for t in manifest.tensors if t.layer <= MAX_LAYERS and t.cols > 1]
    full = sum(min(t.rows, t.cols) for t in matrices)
    kept = sum(min(t.rank, t.rows, t.cols) if t.form == "lowrank" else min(t.rows, t.cols) for t in matrices)
    numbers = 0
    for t in matrices:
        numbers += t.rows * t.cols if t.form != "lowrank" else t.rank * t.rows
        if t.rank and (t.form == "packed" or t.stack in ("", t.name)):
            numbers += t.rank * (t.cols if t.form == "lowrank" else t.rows + t.cols)
    stored, dense = manifest.matrix_bytes()
    return {
        "rank_dropped": round(1 - kept / full, 5),
        "params_saved": round(1 - numbers / sum(t.rows * t.cols for t in matrices), 5),
        "bytes_saved": round(1 - stored / dense, 5),
    }
