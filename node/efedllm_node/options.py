"""The command-line options of `efedllm node`, in groups that several commands share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from efedllm import logs
from efedllm.chain import Deployment, keystore, parse_amount
from efedllm.chain.connection import LOCAL_CHAIN_IDS
from efedllm.cli import DeploymentFile, Json, PasswordFile, RpcUrl
from efedllm.commitments.eip712 import parse_hex
from efedllm.errors import ConfigError, ProtocolError
from efedllm.settings import Settings
from efedllm.sizes import parse_size
from efedllm_node.config import NodeConfig

NetworkHome = Annotated[Path | None, typer.Option("--home", help="Where `efedllm up` keeps its network.")]


@dataclass(frozen=True)
class ChainOptions:
    """Options of every command: the chain, and the account that the command is about."""

    rpc: RpcUrl = None
    deployment: DeploymentFile = None
    key: Annotated[Path | None, typer.Option("--keystore", help="Encrypted account of the node's operator.")] = None
    as_json: Json = False

    def settings(self, home: Path | None = None, **more: Any) -> Settings:
        """These options over the environment over files. `home`: of the network; `more`: further settings."""
        settings = Settings.load(home=home, rpc_url=self.rpc, deployment=self.deployment, keystore=self.key, **more)
        logs.setup(settings.log_level, settings.log_format)
        return settings


@dataclass(frozen=True)
class AccountOptions(ChainOptions):
    """Options of the commands that send transactions."""

    password_file: PasswordFile = None

    def settings(self, home: Path | None = None, **more: Any) -> Settings:
        return super().settings(home, password_file=self.password_file, **more)


@dataclass(frozen=True)
class NodeOptions:
    """Options that say what a node serves; what is left out is read from its registration."""

    model_id: Annotated[str | None, typer.Option("--model-id", metavar="0xHEX", help="Registered model to serve.")] = (
        None
    )
    layers: Annotated[
        str | None, typer.Option("--layers", metavar="LO:HI", help="Serve layers LO up to, not including, HI.")
    ] = None
    price: Annotated[
        int | None, typer.Option("--price", help="Price of 1000 tokens through these layers, in gwei of EFED.")
    ] = None
    model: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="DIR|URL", help="Where the published model is. Repeatable."),
    ] = None
    stake: Annotated[str | None, typer.Option("--stake", metavar="EFED", help="Stake this much if less is staked.")] = (
        None
    )
    home: Annotated[Path | None, typer.Option("--home", help="The node's own directory.")] = None

    def config(
        self, account: AccountOptions, *, listen: str = "127.0.0.1:0", ram: str | None = None, **more: Any
    ) -> NodeConfig:
        """The configuration that these options describe; `more`: further fields of it. Raises ConfigError."""
        settings = account.settings(ram=ram)
        path = settings.need_deployment()
        host, port = parse_listen(listen)
        if not self.model:
            raise ConfigError("no-source", "No place to get the model from was given.", "Pass --model DIR or URL.")
        return NodeConfig(
            rpc_url=settings.need_rpc(),
            deployment=path,
            keystore=settings.need_keystore(),
            password=keystore.read_password(settings.password_file),
            home=(self.home or settings.home / "node").expanduser(),
            models=tuple(self.model),
            layers=None if self.layers is None else parse_layers(self.layers),
            model_id=parse_model_id(self.model_id or settings.model_id),
            price=self.price,
            listen_host=host,
            listen_port=port,
            stake=None if self.stake is None else parse_amount(self.stake),
            ram=None if settings.ram is None else parse_size(settings.ram),
            rpc_budget=settings.rpc_budget,
            light_keys=Deployment.load(path).chain_id in LOCAL_CHAIN_IDS,
            **more,
        )


def parse_layers(text: str) -> tuple[int, int]:
    """(lo, hi) of "LO:HI". Raises ConfigError "bad-layers"."""
    lo, separator, hi = text.partition(":")
    if not separator or not (lo.isascii() and lo.isdigit() and hi.isascii() and hi.isdigit()) or int(lo) >= int(hi):
        raise ConfigError("bad-layers", f"{text!r} is no layer range.", "Use --layers LO:HI, for example 0:4.")
    return int(lo), int(hi)


def parse_listen(text: str) -> tuple[str, int]:
    """(host, port) of "HOST:PORT", the host in brackets if it is IPv6. Raises ConfigError "bad-listen"."""
    host, separator, port = text.rpartition(":")
    if not separator or not host or not (port.isascii() and port.isdigit()) or int(port) > 0xFFFF:
        raise ConfigError("bad-listen", f"{text!r} is no address to listen on.", "Use --listen HOST:PORT.")
    return host.removeprefix("[").removesuffix("]"), int(port)


def parse_model_id(text: str | None) -> bytes | None:
    """The 32 bytes of "0x" and 64 hex digits. Raises ConfigError "bad-model-id"."""
    if text is None:
        return None
    try:
        return parse_hex(text, "model id", 32)
    except ProtocolError as error:
        raise ConfigError("bad-model-id", f"{text!r} is no model id.", "Use 0x and 64 hex digits.") from error
