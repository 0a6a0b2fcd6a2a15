"""Budgets are kept, the bytes repeat and resume, and the certificate says what was measured."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from efedllm.compression import CompressOptions, EvaluateOptions, compress, evaluate, inspect
from efedllm.compression.report import REPORT_NAME
from efedllm.errors import ConfigError, EfedError
from efedllm.models.manifest import MANIFEST_NAME, Manifest
from efedllm_deploy.model_cli import app


class StoppedError(Exception):
    """Raised from a progress callback, as an interrupt would be."""


def files(directory: Path) -> dict[str, bytes]:
    """All but the note of the time it took."""
    return {p.name: p.read_bytes() for p in directory.iterdir() if p.name != REPORT_NAME}


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
@pytest.mark.parametrize("budget", [0.3, 0.5])
def test_auto_stays_within_the_budget(
    family: str, budget: float, worded: Callable[[str], Path], tmp_path: Path
) -> None:
    manifest = compress(CompressOptions(str(worded(family)), tmp_path / "out", method="auto", budget=budget))
    stored, dense = manifest.matrix_bytes()
    assert 0.9 * budget * dense < stored <= budget * dense
    assert (manifest.budget, manifest.quant, manifest.keep) == (budget, "packed", 1.0)
    assert manifest.calibration is not None


@pytest.mark.parametrize(
    ("method", "budget"), [("whiten", 0.7), ("truncate", 0.7), ("int8", 0.7), ("lowrank+int4", 0.6)]
)
def test_every_method_stays_within_the_budget(
    method: Any, budget: float, worded: Callable[[str], Path], tmp_path: Path
) -> None:
    manifest = compress(CompressOptions(str(worded("llama")), tmp_path / "out", method=method, budget=budget))
    stored, dense = manifest.matrix_bytes()
    assert stored <= budget * dense


def test_auto_gives_the_same_bytes_and_resumes(worded: Callable[[str], Path], tmp_path: Path) -> None:
    def options(out: str) -> CompressOptions:
        return CompressOptions(str(worded("qwen2")), tmp_path / out, method="auto", budget=0.4)

    def stop(done: int, _total: int, _left: float) -> None:
        if done == 12:
            raise StoppedError

    whole = compress(options("whole"))
    with pytest.raises(StoppedError):
        compress(options("parts"), stop)
    finished = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "parts").glob("layer-*")}
    assert len(finished) == 3
    assert not (tmp_path / "parts" / ".compress" / "states.scratch").exists()
    assert compress(options("parts")) == whole
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
    assert {name: (tmp_path / "parts" / name).stat().st_mtime_ns for name in finished} == finished


def test_biases_take_up_the_mean_error(worded: Callable[[str], Path], tmp_path: Path) -> None:
    """gpt2 has biases on every matrix: packed, they change; as int8 rows, they stay."""
    for method in ("lowrank+int4", "int8"):
        compress(CompressOptions(str(worded("gpt2")), tmp_path / method, method=method))
    name = "transformer.h.2.mlp.c_fc.bias"
    compress(CompressOptions(str(worded("gpt2")), tmp_path / "dense"))
    packed, int8, dense = (Manifest.load(tmp_path / m).tensor(name) for m in ("lowrank+int4", "int8", "dense"))
    assert int8.sha256 == dense.sha256
    assert packed.sha256 != dense.sha256


def test_manifests_without_the_new_forms_keep_their_fields(published: Callable[..., Path]) -> None:
    """Models that are registered already must keep the hash they were registered with."""
    document = json.loads((published("llama", 0.5, "int8") / MANIFEST_NAME).read_bytes())
    assert not {"budget", "calibration", "certificate"} & set(document)
    fields = {"name", "layer", "tensor_id", "form", "rows", "cols", "rank", "dtype", "parts", "file", "sha256"}
    assert all(set(tensor) == fields for tensor in document["tensors"])


def test_int4_with_factors_keeps_the_bundled_model_and_the_certificate_says_so(
    bundled_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    made = compress(CompressOptions(str(bundled_model), out, method="lowrank+int4", calibration_tokens=8192))
    texts = [bundled_model / "held-out.txt"]
    certified = evaluate(EvaluateOptions(out, str(bundled_model), texts, window=256, tokens=3000))
    assert Manifest.load(out) == certified
    assert (certified.weights_root, certified.hash() != made.hash()) == (made.weights_root, True)
    certificate = certified.certificate
    assert certificate is not None
    assert certificate.bytes_saved > 0.70
    (text,) = certificate.texts
    assert 8 < text.perplexity_original < 16
    assert 0 < text.kl < 0.06
    assert text.increase < 0.04
    assert text.top1 > 0.85
    assert inspect(out)["certificate"] == json.loads(certificate.model_dump_json())
    assert evaluate(EvaluateOptions(out, str(bundled_model), texts, window=256, tokens=3000)) == certified


def test_an_uncompressed_model_is_certified_as_equal(worded: Callable[[str], Path], tmp_path: Path) -> None:
    source, out = worded("mistral"), tmp_path / "out"
    compress(CompressOptions(str(source), out))
    ran = CliRunner().invoke(
        app,
        [
            *("evaluate", "--model", str(out), "--original", str(source), "--window", "50", "--json"),
            *("--text", str(source / "calibration.txt"), "--tokens", "101"),
        ],
    )
    assert ran.exit_code == 0, ran.output
    (text,) = json.loads(ran.stdout)["certificate"]["texts"]
    assert (text["tokens"], text["top1"]) == (98, 1.0)
    assert abs(text["kl"]) < 1e-6
    assert text["perplexity"] == pytest.approx(text["perplexity_original"], rel=1e-5)
    shown = CliRunner().invoke(app, ["inspect", str(out), "--json"])
    assert json.loads(shown.stdout)["certificate"]["texts"] == [text]


def test_bad_budgets_and_evaluations_are_refused(
    worded: Callable[[str], Path], checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    source, out = worded("llama"), tmp_path / "out"
    refused: list[tuple[dict[str, Any], str]] = [
        ({"method": "auto", "budget": 0.0}, "bad-options"),
        ({"method": "auto", "budget": 1.5}, "bad-options"),
        ({"method": "auto", "keep": 0.5}, "bad-options"),
        ({"method": "whiten", "keep": 0.5, "budget": 0.5}, "bad-options"),
        ({"method": "auto", "budget": 0.05}, "budget-too-small"),
        ({"method": "lowrank+int4", "budget": 0.2}, "budget-too-small"),
        ({"method": "int8", "budget": 0.3}, "budget-too-small"),
        ({"method": "auto", "model": str(checkpoint("llama"))}, "no-calibration"),
    ]
    for change, code in refused:
        with pytest.raises(ConfigError) as caught:
            compress(CompressOptions(**{"model": str(source), "out": out, **change}))
        assert (caught.value.code, bool(caught.value.hint)) == (code, True)
    assert not out.exists()
    compress(CompressOptions(str(source), tmp_path / "made"))
    before = (tmp_path / "made" / MANIFEST_NAME).read_bytes()
    (tmp_path / "empty.txt").write_text("")
    text = source / "calibration.txt"
    for options, code in [
        (EvaluateOptions(tmp_path / "made", str(source), []), "no-text"),
        (EvaluateOptions(tmp_path / "made", str(source), [tmp_path / "absent.txt"]), "no-text"),
        (EvaluateOptions(tmp_path / "made", str(source), [tmp_path / "empty.txt"]), "no-text"),
        (EvaluateOptions(tmp_path / "made", str(checkpoint("gpt2")), [text]), "other-model"),
        (EvaluateOptions(tmp_path / "empty", str(source), [text]), "not-published"),
    ]:
        with pytest.raises(EfedError) as refusal:
            evaluate(options)
        assert (refusal.value.code, bool(refusal.value.hint)) == (code, True)
    assert (tmp_path / "made" / MANIFEST_NAME).read_bytes() == before
    damaged = shutil.copytree(tmp_path / "made", tmp_path / "damaged")
    (damaged / "layer-0002.safetensors").write_bytes(b"")
    with pytest.raises(EfedError):
        evaluate(EvaluateOptions(damaged, str(source), [text]))
