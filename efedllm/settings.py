"""Settings of every program: flags, then EFEDLLM_* variables, then efedllm.toml, then the local network's own file."""

from __future__ import annotations

import json
import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from efedllm.errors import ConfigError

DEFAULT_HOME = Path("~/.efedllm")
CONFIG_FILE = "efedllm.toml"
NETWORK_FILE = "network.json"

Device = Literal["cpu", "cuda"]
"""Where the layers of a model are computed."""


class Settings(BaseSettings):
    """Each field is a flag of the same name, and EFEDLLM_<NAME> in the environment. Make one with `load`."""

    model_config = SettingsConfigDict(env_prefix="EFEDLLM_", extra="ignore", frozen=True)

    home: Path = DEFAULT_HOME  # everything a program keeps
    rpc_url: str | None = None  # http://HOST:PORT of an EVM node
    deployment: Path | None = None  # deployments/<chainId>.json
    model_id: str | None = None  # 0x and 64 hex digits
    keystore: Path | None = None  # encrypted account
    password_file: Path | None = None
    rpc_budget: float = Field(default=30.0, gt=0)  # seconds an RPC outage is waited out
    ram: str | None = None  # memory for weights, caches and activations, such as 2GB; everything is held without it
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["console", "json"] = "console"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - pydantic passes all of these by name
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags and the environment only; `load` adds the files below them."""
        return init_settings, env_settings

    @classmethod
    def load(cls, config: Path | None = None, *, network: bool = True, **flags: Any) -> Settings:
        """Settings with `flags` (None means not given) over the environment, over `config` or ./efedllm.toml, over
        <home>/network.json (unless `network` is False). Raises ConfigError "bad-settings".
        """
        given = {name: value for name, value in flags.items() if value is not None}
        file_values = _read_toml(config)
        environment = {name for name in cls.model_fields if f"EFEDLLM_{name.upper()}" in os.environ}
        merged = {name: value for name, value in file_values.items() if name not in environment} | given
        try:
            settings = cls(**merged)
            local = read_network(settings.home.expanduser()) if network else {}
            found = {
                "rpc_url": local.get("rpc_url"),
                "deployment": local.get("deployment"),
                "model_id": local.get("model_id"),
                "keystore": local.get("wallet"),
                "password_file": local.get("password_file"),
            }
            # The local network's wallet and password belong to its chain only.
            if settings.rpc_url is not None and settings.rpc_url != local.get("rpc_url"):
                found = {}
            if settings.keystore is not None:
                found.pop("password_file", None)
            missing = {name: value for name, value in found.items() if value and getattr(settings, name) is None}
            settings = cls(**{**merged, **missing})
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            raise ConfigError(
                "bad-settings", f"The setting {name} is wrong: {first['msg']}.", f"Check --{name.replace('_', '-')}."
            ) from error
        return settings.model_copy(
            update={
                name: value.expanduser()
                for name in ("home", "deployment", "keystore", "password_file")
                if isinstance(value := getattr(settings, name), Path)
            }
        )

    def need_rpc(self) -> str:
        """The RPC address. Raises ConfigError "no-network"."""
        if self.rpc_url is None:
            raise ConfigError("no-network", "No chain is set.", "Start one with `efedllm up`, or pass --rpc URL.")
        return self.rpc_url

    def need_deployment(self) -> Path:
        """The deployment file. Raises ConfigError "no-network"."""
        if self.deployment is None:
            raise ConfigError(
                "no-network", "No deployment file is set.", "Start a network with `efedllm up`, or pass --deployment."
            )
        return self.deployment

    def need_keystore(self) -> Path:
        """The keystore. Raises ConfigError "no-keystore"."""
        if self.keystore is None:
            raise ConfigError(
                "no-keystore", "No wallet is set.", "Make one with `efedllm wallet new`, or pass --keystore FILE."
            )
        return self.keystore


def _read_toml(config: Path | None) -> dict[str, Any]:
    path = config or Path(os.environ.get("EFEDLLM_CONFIG", CONFIG_FILE))
    if not path.exists():
        if config is not None:
            raise ConfigError("bad-settings", f"There is no settings file {path}.", "Check --config.")
        return {}
    try:
        values = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigError("bad-settings", f"{path} is not valid TOML: {error}.", "Correct the file.") from error
    return {name: value for name, value in values.items() if name in Settings.model_fields}


def read_network(home: Path) -> dict[str, Any]:
    """The content of <home>/network.json, which a running local network writes; empty when there is none."""
    try:
        value = json.loads((home / NETWORK_FILE).read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


@dataclass(frozen=True)
class LocalMember:
    """A node or verifier of the local network: its name, its account, its own folder."""

    name: str
    address: str
    home: Path


def local_members(settings: Settings, role: Literal["nodes", "verifiers"]) -> list[LocalMember]:
    """Nodes and verifiers of the local network of `settings.home`.

    Empty when the settings name another chain or account.
    """
    local = read_network(settings.home)
    if settings.rpc_url != local.get("rpc_url") or str(settings.keystore) != local.get("wallet"):
        return []
    found = local.get(role)
    return [
        LocalMember(str(item["name"]), str(item["address"]), Path(str(item["home"])))
        for item in (found if isinstance(found, list) else [])
        if isinstance(item, dict) and {"name", "address", "home"} <= item.keys()
    ]
