"""Reading a transformers checkpoint tensor by tensor, from a local directory or the Hugging Face hub."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from efedllm.errors import ModelError

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
# Everything a published model carries besides weights.
PLAIN_NAMES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


def resolve(model: str) -> Path:
    """Directory of `model`: itself when it is one, else the hub repository of that name, downloaded or from its cache.

    Raises ModelError "no-model" when it is neither.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    try:
        return Path(snapshot_download(model, allow_patterns=[*PLAIN_NAMES, "*.safetensors", INDEX_NAME]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            "no-model",
            f"{model} is neither a directory nor a model that could be downloaded: {str(error).splitlines()[0]}",
            "Check the name, the network connection, or log in with `hf auth login`.",
        ) from error


class Checkpoint:
    """The safetensors of one checkpoint directory. Tensors are read one at a time.

    Names are those of the skeleton; checkpoints saved without the leading module ("h.0..." for "transformer.h.0...") or
    with it ("bert.encoder..." for "encoder...") are understood. Raises ModelError "unsupported-checkpoint" when there
    are no safetensors, "corrupt-weights" when one is damaged.
    """

    def __init__(self, directory: Path, base: str) -> None:
        self.directory = directory
        self._base = f"{base}."
        self._files = _index(directory)

    @property
    def weight_files(self) -> list[str]:
        return sorted(set(self._files.values()))

    def fingerprint(self) -> str:
        """Hex digest that changes when any weight file is replaced: names, sizes and modification times."""
        stats = [(name, (self.directory / name).stat()) for name in self.weight_files]
        text = json.dumps([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])
        return hashlib.sha256(text.encode()).hexdigest()

    def tensor(self, name: str) -> Tensor:
        """One tensor, in its stored dtype."""
        key = self._key(name)
        with self._open(self._files[key]) as file:
            tensor: Tensor = file.get_tensor(key)  # type: ignore[no-untyped-call]
        return tensor

    def _key(self, name: str) -> str:
        for key in (name, name.removeprefix(self._base), self._base + name):
            if key in self._files:
                return key
        raise ModelError(
            "corrupt-weights", f"The checkpoint {self.directory.name} has no tensor {name}.", "Fetch the model again."
        )

    @contextmanager
    def _open(self, name: str) -> Iterator[safe_open]:
        try:
            with safe_open(self.directory / name, framework="pt") as file:
                yield file
        except (SafetensorError, OSError) as error:
            raise ModelError(
                "corrupt-weights", f"{name} of {self.directory.name} cannot be read: {error}.", "Fetch the model again."
            ) from error


def _index(directory: Path) -> dict[str, str]:
    """Tensor name -> file name."""
    index = directory / INDEX_NAME
    try:
        if index.is_file():
            files = {str(k): str(v) for k, v in json.loads(index.read_text("utf-8"))["weight_map"].items()}
            if any(Path(name).name != name for name in files.values()):
                raise ValueError("a file name with a path")
            return files
        with safe_open(directory / SINGLE_NAME, framework="pt") as file:
            return dict.fromkeys(file.keys(), SINGLE_NAME)
    except FileNotFoundError as error:
        raise ModelError(
            "unsupported-checkpoint",
            f"{directory} has no {SINGLE_NAME}.",
            "Only safetensors checkpoints are read; convert others with save_pretrained.",
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, SafetensorError, OSError) as error:
        raise ModelError(
            "corrupt-weights", f"The weights in {directory} cannot be read: {error}.", "Fetch the model again."
        ) from error
