"""The folder of a source checkout, for what is no part of an installed package: contracts, tools, the bundled model."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from efedllm.errors import ConfigError

MARKER = "hardhat.config.js"


def find_project_root() -> Path | None:
    """The checkout that this package runs from; None when it was installed from a wheel."""
    package = Path(str(files("efedllm")))
    return package.parent if (package.parent / MARKER).is_file() else None


def project_root() -> Path:
    """The checkout that this package runs from.

    Raises ConfigError "no-checkout" when the package was installed from a wheel.
    """
    root = find_project_root()
    if root is None:
        raise ConfigError(
            "no-checkout",
            "This command needs a checkout of the project's sources.",
            "Clone the repository and run `make setup` in it.",
        )
    return root
