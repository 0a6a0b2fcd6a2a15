"""Getting this node's layers onto its disk, every byte checked against what is registered on chain."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from efedllm.chain.types import ModelInfo
from efedllm.engine.protocol import Executor, constants_of
from efedllm.errors import ModelError
from efedllm.logs import get_logger
from efedllm.models.manifest import Manifest
from efedllm.models.source import FetchProgress, fetch_published, is_url, open_published


async def prepare(
    locations: Sequence[str], cache: Path, model: ModelInfo, lo: int, hi: int, progress: FetchProgress | None = None
) -> tuple[Path, Manifest]:
    """Directory with the verified files of layers [lo, hi) of a registered model, and its registered manifest.

    A local directory is used where it is; otherwise the files are fetched into `cache`. Raises the ModelError of the
    last location that had to be given up.
    """
    root, registered = model.weights_root, model.manifest_hash
    failure: ModelError | None = None
    for location in locations:
        if is_url(location):
            continue
        directory = Path(location)
        try:
            return directory, await asyncio.to_thread(open_published, directory, root, lo, hi, registered)
        except ModelError as error:
            get_logger("weights").warning("location not used", location=location, code=error.code, reason=error.message)
            failure = error
    urls = [location for location in locations if is_url(location)]
    if not urls and failure is not None:
        raise failure
    target = cache / registered.hex()[:16]
    return target, await fetch_published(urls, target, root, lo, hi, progress, registered)


def check_registered(executor: Executor, model: ModelInfo) -> None:
    """Raises ModelError "wrong-constants" unless the engine computes in the model's registered profile, with its
    constants, and "wrong-shape" unless it has the registered shape: verifiers would find every answer wrong, or none.
    """
    shape, registered = (executor.layers, executor.hidden), (model.layers, model.hidden)
    if shape != registered:
        raise ModelError(
            "wrong-shape",
            f"The model has {shape[0]} layers of width {shape[1]}, its registration says {registered[0]} of width "
            f"{registered[1]}.",
            "Serve another model: this one was registered wrongly.",
        )
    ours = constants_of(executor) or bytes(32)
    if ours != model.constants_hash:
        raise ModelError(
            "wrong-constants",
            f"This version computes with the constants 0x{ours.hex()}, the model with 0x{model.constants_hash.hex()}.",
            "Use the version of the software that the model was published with.",
        )
