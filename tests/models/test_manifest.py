"""The manifest: leaves as the contract computes them, roots, proofs, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from eth_abi.abi import encode
from eth_utils.crypto import keccak

from efedllm.commitments.merkle import WeightsTree, verify_weights
from efedllm.errors import ModelError
from efedllm.models.manifest import LAYER_EMBED, LAYER_FILES, LAYER_HEAD, Manifest, weight_leaf


@pytest.fixture(scope="module")
def directory(published: Callable[..., Path]) -> Path:
    return published("llama-tied", 0.5, "int8")


@pytest.fixture(scope="module")
def manifest(directory: Path) -> Manifest:
    return Manifest.load(directory)


def test_a_leaf_is_what_solidity_hashes() -> None:
    name, digest = "model.layers.3.mlp.up_proj.weight", hashlib.sha256(b"weights").hexdigest()
    types = ["uint16", "bytes32", "uint32", "uint32", "uint32", "uint8", "bytes32"]
    values = [3, keccak(text=name), 704, 256, 93, 4, bytes.fromhex(digest)]
    assert weight_leaf(3, name, 704, 256, 93, "int8", digest) == keccak(keccak(encode(types, values)))


def test_every_tensor_has_a_proof_that_only_it_satisfies(manifest: Manifest) -> None:
    for tensor in manifest.tensors:
        proof = manifest.proof(tensor)
        assert verify_weights(manifest.root, tensor.leaf, proof)
        assert not verify_weights(manifest.root, tensor.model_copy(update={"rank": tensor.rank + 1}).leaf, proof)
        assert not verify_weights(manifest.root, tensor.model_copy(update={"layer": tensor.layer ^ 1}).leaf, proof)


def test_plain_files_are_under_the_root(manifest: Manifest) -> None:
    info = manifest.file("config.json")
    leaf = weight_leaf(LAYER_FILES, info.name, info.size, 0, 0, "", info.sha256)
    others = [t.leaf for t in manifest.tensors]
    plain = [weight_leaf(LAYER_FILES, f.name, f.size, 0, 0, "", f.sha256) for f in manifest.files if f.is_plain]
    tree = WeightsTree([*others, *plain])
    assert tree.root == manifest.root
    assert verify_weights(manifest.root, leaf, tree.proof(len(others) + plain.index(leaf)))


def test_a_shard_root_covers_exactly_what_the_node_needs(manifest: Manifest) -> None:
    leaves = {
        layer: [t.leaf for t in manifest.tensors if t.layer == layer] for layer in (0, 7, LAYER_HEAD, LAYER_EMBED)
    }
    assert manifest.shard_root(0, 1) == WeightsTree(leaves[0] + leaves[LAYER_EMBED]).root
    assert manifest.shard_root(7, 8) == WeightsTree(leaves[7] + leaves[LAYER_HEAD] + leaves[LAYER_EMBED]).root
    roots = {manifest.shard_root(lo, hi) for lo in range(8) for hi in range(lo + 1, 9)}
    assert len(roots) == 36


def test_files_for_a_range(manifest: Manifest, published: Callable[..., Path]) -> None:
    plain = ["config.json", "generation_config.json"]
    assert manifest.files_for(2, 4) == sorted([*plain, "layer-0002.safetensors", "layer-0003.safetensors"])
    ends = ["embed.safetensors", "head.safetensors", "layer-0007.safetensors"]
    assert manifest.files_for(7, 8) == sorted([*plain, *ends])
    untied = Manifest.load(published("llama"))
    assert untied.files_for(7, 8) == sorted([*plain, "head.safetensors", "layer-0007.safetensors"])


def test_codes_registered_on_chain(manifest: Manifest) -> None:
    assert (manifest.rank_bps, manifest.quant_code) == (5000, 1)


def test_the_manifest_file_is_its_canonical_form(manifest: Manifest, directory: Path) -> None:
    data = (directory / "manifest.json").read_bytes()
    assert hashlib.sha256(data).digest() == manifest.hash()
    assert Manifest.parse(data) == manifest
    assert Manifest.parse(json.dumps(json.loads(data), indent=3)).hash() == manifest.hash()


def _rename(document: dict[str, Any]) -> None:
    document["tensors"][5]["name"] += "x"


def _swap_hash(document: dict[str, Any]) -> None:
    document["tensors"][5]["sha256"] = "0" * 64


def _new_config(document: dict[str, Any]) -> None:
    next(f for f in document["files"] if f["name"] == "config.json")["sha256"] = "0" * 64


def _escape(document: dict[str, Any]) -> None:
    document["files"][0]["name"] = "../config.json"


def _drop_layer(document: dict[str, Any]) -> None:
    document["tensors"] = [t for t in document["tensors"] if t["layer"] != 4]


def _move(document: dict[str, Any]) -> None:
    document["tensors"][5]["file"] = "layer-0006.safetensors"


def _twice(document: dict[str, Any]) -> None:
    document["tensors"].append(document["tensors"][5])


def _future(document: dict[str, Any]) -> None:
    document["format_version"] = 2


def _surplus(document: dict[str, Any]) -> None:
    document["note"] = "hello"


@pytest.mark.parametrize(
    "spoil", [_rename, _swap_hash, _new_config, _escape, _drop_layer, _move, _twice, _future, _surplus]
)
def test_a_manifest_that_does_not_hold_together_is_refused(
    manifest: Manifest, spoil: Callable[[dict[str, Any]], None]
) -> None:
    document = json.loads(manifest.canonical_json())
    spoil(document)
    with pytest.raises(ModelError) as caught:
        Manifest.parse(json.dumps(document))
    assert caught.value.code == "bad-manifest"
    assert "\n" not in str(caught.value)


def test_a_directory_without_a_manifest_is_not_a_published_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="efedllm model compress") as caught:
        Manifest.load(tmp_path)
    assert caught.value.code == "not-published"


def test_unknown_names_are_refused(manifest: Manifest) -> None:
    with pytest.raises(ModelError, match="no tensor"):
        manifest.tensor("nope")
    with pytest.raises(ModelError, match="no file"):
        manifest.file("nope")


def test_manifest_source_and_protocol_work_without_torch(directory: Path) -> None:
    program = """
import sys
for name in ("torch", "transformers", "safetensors", "huggingface_hub"):
    sys.modules[name] = None
import asyncio
from pathlib import Path
import efedllm.engine.protocol
from efedllm.models.manifest import Manifest
from efedllm.models.source import fetch_published
directory, dest = map(Path, sys.argv[1:])
asyncio.run(fetch_published([directory], dest, Manifest.load(directory).root, 2, 3))
print(sorted(p.name for p in dest.iterdir()))
"""
    dest = directory.parent / "fetched"
    command = [sys.executable, "-c", program, str(directory), str(dest)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(
        ["config.json", "generation_config.json", "layer-0002.safetensors", "manifest.json"]
    )


def test_profiles_need_their_constants(published: Callable[..., Path]) -> None:
    manifest = Manifest.load(published("llama", quant="int8"))
    plain = manifest.with_profile("float")
    document = json.loads(plain.canonical_json())
    assert not {"profile", "constants", "tolerance"} & set(document)
    assert (plain.profile_code, plain.constants_hash) == (0, bytes(32))
    exact = plain.with_profile("exact", b"\x05" * 32)
    assert (exact.profile_code, exact.constants_hash) == (1, b"\x05" * 32)
    assert Manifest.parse(exact.canonical_json()) == exact
    assert exact.hash() != plain.hash()
    assert exact.root == plain.root
    for bad in ({"profile": "exact"}, {"constants": "05" * 32}, {"profile": "fast"}):
        with pytest.raises(ModelError) as caught:
            Manifest.parse(json.dumps(document | bad))
        assert caught.value.code == "bad-manifest"


TOLERANCE: dict[str, Any] = {
    "tau": 3e-5,
    "rounding": 4.8e-7,
    "honest_max": 3.3e-6,
    "honest_count": 100_000,
    "log_mean": -14.0,
    "log_sd": 0.4,
    "attack_min": 9e-5,
    "weakest_attack": "bf16 weights",
    "settings": ["avx2", "avx512"],
    "evidence": "0a" * 32,
    "slashable": True,
    "compute": "float32",
}


@pytest.mark.parametrize(
    ("change", "profile"),
    [
        ({"tau": 3.2e-6}, "float"),
        # Limits that honest machines exceed, or come near to: a trap for whoever serves the model.
        ({"tau": 5.8e-6, "honest_max": 0.0}, "float"),
        ({"tau": 2.9e-5, "honest_max": 0.0}, "float"),
        # Limits that pass a hop that computes nothing, or that the weakest attack is no worse than an honest machine.
        ({"tau": 1.0, "slashable": False}, "float"),
        ({"honest_max": 2e-5, "attack_min": 2e-5, "slashable": False}, "float"),
        ({"rounding": 0.0}, "float"),
        ({"attack_min": 8e-5}, "float"),
        ({"slashable": False}, "float"),
        ({"compute": "float16"}, "float"),
        ({"settings": ["avx2"]}, "float"),
        ({}, "exact"),
    ],
)
def test_a_tolerance_is_refused_when_its_evidence_does_not_carry_it(
    published: Callable[..., Path], change: dict[str, Any], profile: str
) -> None:
    document = json.loads(Manifest.load(published("llama", quant="int8")).with_profile("float").canonical_json())
    good = Manifest.parse(json.dumps(document | {"tolerance": TOLERANCE}))
    assert good.tolerance is not None
    assert good.tolerance.slashable
    exact = {"profile": "exact", "constants": "05" * 32} if profile == "exact" else {}
    with pytest.raises(ModelError) as caught:
        Manifest.parse(json.dumps(document | exact | {"tolerance": TOLERANCE | change}))
    assert caught.value.code == "bad-manifest"
