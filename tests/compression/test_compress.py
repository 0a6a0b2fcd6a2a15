"""Publishing: the same bytes every time, resumable, smaller, and better with calibration than without."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from tokenizers import models as tokenizer_models

from efedllm.compression import CompressOptions, compress, inspect
from efedllm.compression.report import REPORT_NAME
from efedllm.engine.protocol import StepItem
from efedllm.engine.shard import ShardEngine
from efedllm.errors import ConfigError, EfedError, ModelError
from efedllm.models.manifest import Manifest


class StoppedError(Exception):
    """Raised from a progress callback, as an interrupt would be."""


def files(directory: Path) -> dict[str, bytes]:
    """All but the note of the time it took."""
    return {p.name: p.read_bytes() for p in directory.iterdir() if p.name != REPORT_NAME}


@pytest.fixture(scope="module")
def bundled_part(bundled_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model with a short calibration text."""
    part = tmp_path_factory.mktemp("part")
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(bundled_model / name, part)
    (part / "calibration.txt").write_text((bundled_model / "calibration.txt").read_text()[:12_000])
    return part


@pytest.mark.parametrize("family", ["llama-tied", "gpt2"])
def test_the_same_options_give_the_same_bytes(family: str, checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    for name in ("a", "b"):
        compress(CompressOptions(str(checkpoint(family)), tmp_path / name, keep=0.6, quant="int8"))
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_whitened_compression_gives_the_same_bytes_and_resumes(bundled_part: Path, tmp_path: Path) -> None:
    def options(out: str, **changed: Any) -> CompressOptions:
        return CompressOptions(str(bundled_part), tmp_path / out, keep=0.5, quant="int8", method="whiten", **changed)

    def stop_at(step: int) -> Callable[[int, int, float], None]:
        def progress(done: int, _total: int, _left: float) -> None:
            if done == step:
                raise StoppedError

        return progress

    whole = compress(options("whole"))
    with pytest.raises(StoppedError):
        compress(options("parts"), stop_at(4))
    finished = sorted(p.name for p in (tmp_path / "parts").glob("*.safetensors"))
    assert finished == ["embed.safetensors", "head.safetensors", *(f"layer-000{i}.safetensors" for i in range(3))]
    assert not (tmp_path / "parts" / "manifest.json").exists()
    stamps = {name: (tmp_path / "parts" / name).stat().st_mtime_ns for name in finished}
    # A file that was damaged meanwhile is made again.
    damaged = tmp_path / "parts" / "layer-0001.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    steps: list[tuple[int, int]] = []
    resumed = compress(options("parts"), lambda done, total, _left: steps.append((done, total)))
    assert steps == [(i, 9) for i in range(10)]
    kept = {name for name in finished if (tmp_path / "parts" / name).stat().st_mtime_ns == stamps[name]}
    assert kept == set(finished) - {damaged.name}
    assert resumed == whole
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


def test_files_of_other_options_are_not_mistaken_for_finished_ones(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    def progress(done: int, _total: int, _left: float) -> None:
        if done == 5:
            raise StoppedError

    source = str(checkpoint("qwen3"))
    with pytest.raises(StoppedError):
        compress(CompressOptions(source, tmp_path / "out", keep=0.5), progress)
    changed = compress(CompressOptions(source, tmp_path / "out", keep=0.6))
    assert changed == compress(CompressOptions(source, tmp_path / "fresh", keep=0.6))


def kl_to(reference: ShardEngine, model: ShardEngine, ids: np.ndarray[Any, np.dtype[np.int32]]) -> float:
    def log_probabilities(engine: ShardEngine) -> torch.Tensor:
        hidden = engine.step([StepItem(engine.new_sequence(), ids)])[0]
        return torch.log_softmax(torch.from_numpy(engine.logits(hidden)).double(), dim=1)

    p, q = log_probabilities(reference), log_probabilities(model)
    return float((p.exp() * (p - q)).sum(dim=1).mean())


def test_calibration_keeps_more_of_the_model_than_plain_svd(
    bundled_part: Path, bundled_model: Path, published: Callable[..., Path], tmp_path: Path
) -> None:
    compress(CompressOptions(str(bundled_part), tmp_path / "whiten", keep=0.7, method="whiten"))
    engines = {
        "dense": ShardEngine.load(published("bundled"), 0, 8),
        "truncate": ShardEngine.load(published("bundled", 0.7), 0, 8),
        "whiten": ShardEngine.load(tmp_path / "whiten", 0, 8),
    }
    tokenizer = Tokenizer.from_file(str(bundled_model / "tokenizer.json"))
    ids = np.array(tokenizer.encode((bundled_model / "held-out.txt").read_text()[:2000]).ids, dtype=np.int32)
    lost = {name: kl_to(engines["dense"], engine, ids) for name, engine in engines.items()}
    assert lost["dense"] == 0
    assert 0 < lost["whiten"] < 0.5 * lost["truncate"]


@pytest.mark.parametrize("family", ["mistral", "gpt2", "qwen2"])
def test_every_family_can_be_calibrated(family: str, checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """Sliding windows, learned positions and biases pass through calibration as through the model."""
    source = shutil.copytree(checkpoint(family), tmp_path / "model")
    words = [f"w{i}" for i in range(96)]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(tokenizer_models.WordLevel(vocabulary, unk_token="w0"))
    from tokenizers.pre_tokenizers import Whitespace

    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(source / "tokenizer.json"))
    ids = np.random.default_rng(0).integers(0, 96, 3000)
    (tmp_path / "text.txt").write_text(" ".join(words[i] for i in ids))
    for method in ("truncate", "whiten"):
        compress(
            CompressOptions(str(source), tmp_path / method, keep=0.8, method=method, calibration=tmp_path / "text.txt")
        )
    compress(CompressOptions(str(source), tmp_path / "dense"))
    dense, truncated, whitened = (ShardEngine.load(tmp_path / n, 0, 8) for n in ("dense", "truncate", "whiten"))
    probe = ids[:40].astype(np.int32)
    assert kl_to(dense, whitened, probe) < kl_to(dense, truncated, probe)


def test_other_readers_of_safetensors_can_read_the_files(published: Callable[..., Path]) -> None:
    directory = published("llama", 0.5, "int8")
    with safe_open(directory / "layer-0003.safetensors", framework="pt") as file:
        name = "model.layers.3.mlp.down_proj.weight"
        entry = Manifest.load(directory).tensor(name)
        shapes = {part: tuple(file.get_tensor(part).shape) for part in entry.parts}
    assert shapes == {
        f"{name}.u": (32, entry.rank),
        f"{name}.v": (entry.rank, 48),
        f"{name}.u.scale": (32,),
        f"{name}.v.scale": (entry.rank,),
    }


def test_half_precision_stays_half_precision(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    for dtype, name in ((torch.bfloat16, "bfloat16"), (torch.float16, "float16")):
        model = AutoModelForCausalLM.from_pretrained(checkpoint("llama"), dtype=dtype)
        model.save_pretrained(tmp_path / name)
        manifest = compress(CompressOptions(str(tmp_path / name), tmp_path / f"{name}-out", keep=0.5))
        assert {t.dtype for t in manifest.tensors} == {manifest.dtype} == {name}
        assert ShardEngine.load(tmp_path / f"{name}-out", 0, 8, verify_root=manifest.root).weight_bytes > 0


def test_low_rank_is_used_only_where_it_saves_bytes(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """At rank 1 the scales of small int8 factors weigh more than they save."""
    manifest = compress(CompressOptions(str(checkpoint("llama")), tmp_path / "out", keep=0.95, quant="int8"))
    for tensor in manifest.tensors:
        if tensor.form == "lowrank":
            assert tensor.nbytes < tensor.rows * (tensor.cols + 4)
    assert "dense" in {t.form for t in manifest.tensors if "proj" in t.name}
    assert "lowrank" in {t.form for t in manifest.tensors}


def test_inspect_counts_what_is_there(published: Callable[..., Path]) -> None:
    directory = published("bundled", 1.0, "int8")
    found = inspect(directory)
    weights = sum(p.stat().st_size for p in directory.glob("*.safetensors"))
    assert found["bytes"] < weights < found["bytes"] * 1.02
    assert 0.48 < found["saved"] < 0.50
    assert found["parameters"] == 6_951_168
    assert sum(found["layer_bytes"]) < found["bytes"]
    assert found["weights_root"] == Manifest.load(directory).weights_root
    assert json.loads(json.dumps(found)) == found


def test_bad_requests_are_refused(checkpoint: Callable[[str], Path], bundled_part: Path, tmp_path: Path) -> None:
    source, out = str(checkpoint("llama")), tmp_path / "out"
    refused: list[tuple[dict[str, Any], type[EfedError], str]] = [
        ({"keep": 0.0}, ConfigError, "bad-options"),
        ({"keep": 1.5}, ConfigError, "bad-options"),
        ({"keep": float("nan")}, ConfigError, "bad-options"),
        ({"quant": "int3"}, ConfigError, "bad-options"),
        ({"method": "magic"}, ConfigError, "bad-options"),
        ({"calibration_tokens": 1}, ConfigError, "bad-options"),
        ({"out": Path(source)}, ConfigError, "bad-options"),
        ({"keep": 0.5, "method": "whiten"}, ConfigError, "no-calibration"),
        ({"keep": 0.5, "method": "whiten", "calibration": bundled_part / "config.json"}, ModelError, "no-tokenizer"),
        ({"model": str(tmp_path / "absent")}, ModelError, "no-model"),
    ]
    for change, kind, code in refused:
        with pytest.raises(kind) as caught:
            compress(CompressOptions(**{"model": source, "out": out, **change}))
        assert caught.value.code == code
        assert caught.value.hint
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(ConfigError, match="is empty"):
        compress(CompressOptions(str(bundled_part), out, 0.5, method="whiten", calibration=tmp_path / "empty.txt"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError) as caught_write:
        compress(CompressOptions(source, tmp_path / "file" / "out"))
    assert caught_write.value.code == "cannot-write"
