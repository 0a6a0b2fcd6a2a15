"""Factors by curvature, with and without a shared V: budgets, engines, resuming, healing, another engine's bytes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from efedllm.compression import CompressOptions, compress, inspect
from efedllm.compression.heal import sparkline
from efedllm.compression.options import check
from efedllm.compression.report import REPORT_NAME, CompressionReport
from efedllm.engine.exact.shard import ExactShardEngine
from efedllm.engine.protocol import StepItem
from efedllm.engine.shard import ShardEngine
from efedllm.errors import ConfigError, ModelError
from efedllm.models.manifest import MANIFEST_NAME, Manifest
from efedllm.models.tensorfile import TensorFile
from efedllm_deploy.model_cli import app

TOKENS = 1500


class StoppedError(Exception):
    """Raised from a progress callback, as an interrupt would be."""


def stop_at(step: int) -> Callable[[int, int, float], None]:
    def progress(done: int, _total: int, _left: float) -> None:
        if done == step:
            raise StoppedError

    return progress


def options(source: Path, out: Path, **changed: Any) -> CompressOptions:
    given: dict[str, Any] = {"method": "kfac", "budget": 0.35, "quant": "int8", "calibration_tokens": TOKENS} | changed
    return CompressOptions(str(source), out, **given)


def files(directory: Path) -> dict[str, bytes]:
    """All but the note of the time it took."""
    return {p.name: p.read_bytes() for p in directory.iterdir() if p.name != REPORT_NAME}


def dense(directory: Path, name: str) -> Tensor:
    """What the parts of a low-rank int8 tensor stand for, float64."""
    tensor = Manifest.load(directory).tensor(name)
    with TensorFile(directory / tensor.file) as file:
        u, v, su, sv = (
            torch.from_numpy(
                np.frombuffer(file.view(part), dtype=np.int8 if i < 2 else np.float32)
                .reshape(file.slot(part).shape)
                .copy()
            ).double()
            for i, part in enumerate(tensor.parts)
        )
    return (u * su.unsqueeze(1)) @ (v * sv.unsqueeze(1))


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "bert"])
@pytest.mark.parametrize("changed", [{}, {"all_factored": True}, {"quant": "none", "budget": 0.6}])
def test_budgets_are_kept_in_every_family(
    family: str, changed: dict[str, Any], worded: Callable[[str], Path], tmp_path: Path
) -> None:
    chosen = options(worded(family), tmp_path / "out", **changed)
    manifest = compress(chosen)
    stored, whole = manifest.matrix_bytes()
    assert chosen.budget is not None
    assert 0.9 * chosen.budget * whole < stored <= chosen.budget * whole
    forms = {t.form for t in manifest.tensors if t.cols > 1 and t.layer < manifest.layers}
    assert "lowrank" in forms
    assert ("dense" in forms) != bool(chosen.all_factored)
    weights = sum(slot.end - slot.start for p in (tmp_path / "out").glob("*.safetensors") for slot in slots(p))
    assert weights == sum(t.nbytes for t in manifest.tensors)


def slots(path: Path) -> list[Any]:
    with TensorFile(path) as file:
        return list(file.slots.values())


@pytest.mark.parametrize(("method", "changed"), [("kfac", {"all_factored": True}), ("whiten", {"stack": True})])
def test_engines_run_models_that_share_factors(
    method: str, changed: dict[str, Any], worded: Callable[[str], Path], tmp_path: Path
) -> None:
    """The shared part is in the file once, and each engine gives what the multiplied-out matrices give."""
    out = tmp_path / "out"
    manifest = compress(options(worded("llama"), out, method=method, **changed))
    shared = [t for t in manifest.tensors if t.stack]
    assert len(shared) > 2
    followers = [t for t in shared if t.stack != t.name]
    assert followers
    for tensor in followers:
        with TensorFile(out / tensor.file) as file:
            assert f"{tensor.name}.v" not in file.slots
        assert f"{tensor.stack}.v" in tensor.parts
    ids = np.arange(1, 21, dtype=np.int32)
    float_engine, exact = ShardEngine.load(out, 0, 8, verify_root=manifest.root), ExactShardEngine.load(out, 0, 8)
    found = [e.logits(e.step([StepItem(e.new_sequence(), ids)])[0]) for e in (float_engine, exact)]
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=2e-2)
    model = _multiplied_out(worded("llama"), out, manifest)
    with torch.no_grad():
        wanted = model(torch.from_numpy(ids).long().unsqueeze(0)).logits[0].numpy()
    np.testing.assert_allclose(found[0], wanted, rtol=0, atol=1e-3)


def _multiplied_out(source: Path, out: Path, manifest: Manifest) -> Any:
    """The model in transformers, every matrix dense."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    state = model.state_dict()
    for tensor in manifest.tensors:
        if tensor.form == "lowrank":
            state[tensor.name] = dense(out, tensor.name).float()
        elif tensor.dtype == "int8":
            with TensorFile(out / tensor.file) as file:
                rows = np.frombuffer(file.view(tensor.parts[0]), np.int8).reshape(tensor.rows, tensor.cols)
                scales = np.frombuffer(file.view(tensor.parts[1]), np.float32)
                state[tensor.name] = torch.from_numpy(rows * scales[:, None])
    model.load_state_dict(state)
    return model


def test_a_manifest_whose_shared_factor_is_missing_or_of_another_shape_is_refused(
    worded: Callable[[str], Path], tmp_path: Path
) -> None:
    manifest = compress(options(worded("llama"), tmp_path / "out", all_factored=True))
    document = json.loads(manifest.canonical_json())
    follower = next(t for t in document["tensors"] if t.get("stack", t["name"]) != t["name"])
    other = next(t for t in document["tensors"] if t["form"] == "lowrank" and t["layer"] != follower["layer"])
    for name in (other["name"], "absent", follower["name"] + "x"):
        changed = json.loads(json.dumps(document))
        one = next(t for t in changed["tensors"] if t["name"] == follower["name"])
        one["parts"] = [part.replace(one["stack"], name) for part in one["parts"]]
        one["stack"] = name
        with pytest.raises(ModelError) as caught:
            Manifest.parse(json.dumps(changed))
        assert caught.value.code == "bad-manifest"


@pytest.mark.parametrize("step", [4, 12])
def test_the_same_bytes_after_an_interruption(step: int, worded: Callable[[str], Path], tmp_path: Path) -> None:
    whole = compress(options(worded("qwen2"), tmp_path / "whole"))
    with pytest.raises(StoppedError):
        compress(options(worded("qwen2"), tmp_path / "parts"), stop_at(step))
    assert not (tmp_path / "parts" / MANIFEST_NAME).exists()
    assert compress(options(worded("qwen2"), tmp_path / "parts")) == whole
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


def test_healing_lowers_the_loss_on_unseen_text_and_resumes(worded: Callable[[str], Path], tmp_path: Path) -> None:
    def healed(out: str) -> CompressOptions:
        return options(worded("llama"), tmp_path / out, all_factored=True, heal=28)

    whole = compress(healed("whole"))
    assert whole.heal == 28
    report = CompressionReport.model_validate_json((tmp_path / "whole" / REPORT_NAME).read_text())
    assert report.heal is not None
    assert len(report.heal.losses) == 28
    assert report.heal.after < 0.95 * report.heal.before
    assert report.peak_memory > 1 << 20
    with pytest.raises(StoppedError):
        compress(healed("parts"), stop_at(8 + 27))
    assert (tmp_path / "parts" / ".compress" / "heal.scratch").exists()
    assert compress(healed("parts")) == whole
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
    shown = CliRunner().invoke(app, ["inspect", str(tmp_path / "whole")])
    assert sparkline(report.heal.losses)[:20] in shown.stderr
    assert inspect(tmp_path / "whole")["heal"] == 28


def test_healing_trains_factors_beside_integers_and_needs_some(worded: Callable[[str], Path], tmp_path: Path) -> None:
    packed = {"method": "lowrank+int4", "budget": None}
    before = compress(options(worded("gpt2"), tmp_path / "before", **packed))
    after = compress(options(worded("gpt2"), tmp_path / "after", heal=8, **packed))
    name = "transformer.h.2.mlp.c_fc.weight"
    a, b = before.tensor(name), after.tensor(name)
    assert (a.form, a.parts, a.sha256 != b.sha256) == ("packed", b.parts, True)
    with TensorFile(tmp_path / "before" / a.file) as x, TensorFile(tmp_path / "after" / b.file) as y:
        assert bytes(x.view(f"{name}.q")) == bytes(y.view(f"{name}.q"))
    with pytest.raises(ConfigError) as caught:
        compress(options(worded("gpt2"), tmp_path / "none", method="auto", budget=0.9, heal=5))
    assert caught.value.code == "nothing-to-heal"


def test_a_sparkline_falls_with_the_loss() -> None:
    assert sparkline([8.0, 4.0, 2.0, 1.0]) == "█▅▃▂"
    assert len(sparkline([1.0] * 500)) == 60
    assert sparkline([]) == ""


def test_requests_that_contradict_themselves_are_refused(tmp_path: Path) -> None:
    for changed in (
        {"method": "truncate", "stack": True},
        {"method": "auto", "all_factored": True},
        {"method": "int8", "heal": 5},
        {"heal": -1},
        {"engine": "cloud"},
        {"keep": 0.5},
    ):
        with pytest.raises(ConfigError) as caught:
            check(options(tmp_path, tmp_path, **changed))
        assert (caught.value.code, bool(caught.value.hint)) == ("bad-options", True)


def test_too_small_a_budget_is_refused_before_anything_is_written(
    worded: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        compress(options(worded("llama"), tmp_path / "out", budget=0.01))
    assert caught.value.code == "budget-too-small"
    assert not (tmp_path / "out").exists()


def test_ray_gives_the_same_bytes(worded: Callable[[str], Path], tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
        here = compress(options(worded("llama"), tmp_path / "here"))
        there = compress(options(worded("llama"), tmp_path / "there", engine="ray"))
        assert here == there
        assert files(tmp_path / "here") == files(tmp_path / "there")
    finally:
        ray.shutdown()
        torch.set_num_threads(threads)


def test_without_ray_the_engine_says_what_to_install(
    worded: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match="pip install ray") as caught:
        compress(options(worded("llama"), tmp_path / "out", engine="ray"))
    assert caught.value.code == "no-ray"
