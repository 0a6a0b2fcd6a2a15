"""Which profile a published model gets: exact when the exact engine runs it, else float."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from efedllm.errors import ConfigError, ModelError
from efedllm.models.exact import exact_obstacle
from efedllm.models.manifest import Manifest

ProfileChoice = Literal["auto", "exact", "float"]
ProfileProgress = Callable[[int, int], None]
"""Called with (layers checked, layers in total)."""
CHOICES: tuple[ProfileChoice, ...] = ("auto", "exact", "float")


@dataclass(frozen=True)
class Settled:
    """`reason`: why an automatic choice fell on the float profile, else empty."""

    manifest: Manifest
    reason: str


def check_choice(choice: str) -> ProfileChoice:
    """Raises ConfigError "bad-options"."""
    for known in CHOICES:
        if choice == known:
            return known
    raise ConfigError("bad-options", f"Unknown profile {choice}.", f"Use one of {', '.join(CHOICES)}.")


def wants_integers(model: str, choice: ProfileChoice) -> bool:
    """Whether the checkpoint should be compressed without leaving 16-bit matrices, for the sake of the exact profile.

    model: directory or hub id. Raises ModelError "no-model" or "unsupported-model".
    """
    from efedllm.models.checkpoint import resolve
    from efedllm.models.families import read_config

    return choice == "exact" or (choice == "auto" and exact_obstacle(read_config(resolve(model)), ()) is None)


def settle_profile(directory: Path, choice: ProfileChoice, progress: ProfileProgress | None = None) -> Settled:
    """Write the profile into the manifest of the published model in `directory`, and the hash of its constants.

    Every layer is loaded into the exact engine, one at a time, before a model is called exact. Raises ModelError
    "unsupported-model" or "corrupt-weights" when the choice is "exact" and the engine cannot run the model.
    """
    manifest = Manifest.load(directory)
    reason = ""
    settled = manifest.with_profile("float")
    if choice != "float":
        try:
            settled = manifest.with_profile("exact", exact_constants(directory, manifest, progress))
        except ModelError as error:
            if choice == "exact" or error.code != "unsupported-model":
                raise
            reason = error.message
    if settled != manifest:
        settled.save(directory)
    return Settled(settled, reason)


def exact_constants(directory: Path, manifest: Manifest, progress: ProfileProgress | None = None) -> bytes:
    """The 32 bytes that name the constants of a model's exact arithmetic. Raises ModelError as `settle_profile`."""
    from efedllm.engine.exact.shard import ExactShardEngine

    found = set()
    for layer in range(manifest.layers):
        found.add(ExactShardEngine.load(directory, layer, layer + 1).constants_hash)
        if progress is not None:
            progress(layer + 1, manifest.layers)
    if len(found) != 1:
        raise ModelError(
            "unsupported-model", "The layers of the model need different constants.", "Publish it with --profile float."
        )
    return found.pop()
