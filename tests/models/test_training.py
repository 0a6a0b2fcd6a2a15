"""The training script runs, and goes on where it was stopped."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.model_fixtures import ROOT

SETTINGS = "--vocab 300 --layers 1 --hidden 32 --context 16 --long-context 32 --batch-tokens 64 --threads 1"
SCHEDULE = "--steps 60 --long-steps 4 --every 2 --eval-tokens 200"


def command(out: Path, library: Path) -> list[str]:
    arguments = f"{SETTINGS} {SCHEDULE}".split()
    return [sys.executable, "-m", "models.train", "--out", str(out), "--library", str(library), *arguments]


def test_a_killed_training_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    library = tmp_path / "library"
    library.mkdir()
    for name in ("a", "b", "c"):
        (library / f"{name}.py").write_text(f"def {name}(x):\n    return x + 1\n" * 60)
    # The hash of this name falls into the held-out part.
    (library / "held_21.py").write_text("def held(x):\n    return x + 2\n" * 60)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    subprocess.run(command(whole, library), cwd=ROOT, capture_output=True, check=True)
    with subprocess.Popen(command(parts, library), cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        next(line for line in process.stdout if line.startswith("stage 1 step"))
        process.kill()
    assert not (parts / "model.safetensors").exists()
    done = subprocess.run(command(parts, library), cwd=ROOT, capture_output=True, text=True, check=True)
    assert "going on at stage 1" in done.stdout
    assert "stage 2 step 4/4" in done.stdout
    a, b = load_file(whole / "model.safetensors"), load_file(parts / "model.safetensors")
    assert all(torch.equal(a[name], b[name]) for name in a)
