"""Options that several client commands share, in groups for `efedllm.cli.with_options`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from efedllm.cli import DeploymentFile, Keystore, PasswordFile, RpcUrl
from efedllm_client.config import ClientConfig

if TYPE_CHECKING:
    from efedllm.settings import Settings
    from efedllm_client.jobs.options import GenerateOptions, RouteOptions

WALLET_FILE = "wallet.json"  # in the home directory, where `efedllm wallet new` puts it

Home = Annotated[Path | None, typer.Option("--home", help="Directory for keys, sessions and receipts.")]
Model = Annotated[str | None, typer.Option("--model", help="Model id, or the start of one.", metavar="ID")]

MaxTokens = Annotated[int, typer.Option("--max-tokens", help="Most tokens to generate.")]
Temperature = Annotated[float, typer.Option("--temperature", help="0 always takes the likeliest token (greedy).")]
TopK = Annotated[int, typer.Option("--top-k", help="Sample among the k likeliest tokens; 0 is off.")]
TopP = Annotated[
    float, typer.Option("--top-p", help="Sample among the likeliest tokens with this total probability; 1 is off.")
]
Seed = Annotated[str | None, typer.Option("--seed", help="Number that fixes the sampling; default: a random one.")]
Wire = Annotated[str, typer.Option("--wire", help="Number format between the nodes: f32 or bf16.")]
MinQuality = Annotated[
    float | None,
    typer.Option("--min-quality", help="Lowest certified quality: 0.98 allows a perplexity 2 % above the original's."),
]

RouteNames = Annotated[str | None, typer.Option("--route", help="Nodes to use, in layer order.", metavar="A,B")]
AvoidNames = Annotated[str | None, typer.Option("--avoid", help="Nodes not to use.", metavar="A,B")]
MaxPrice = Annotated[
    str | None, typer.Option("--max-price", help="Highest price of the whole route, EFED per 1000 tokens.")
]
Deposit = Annotated[
    str | None, typer.Option("--deposit", help="EFED to lock in a new session; default: the cost of several such jobs.")
]
NewSession = Annotated[bool, typer.Option("--new-session", help="Open a new session even if an open one fits.")]
Explore = Annotated[
    float, typer.Option("--explore", help="Share of jobs, 0 to 1, that try a node without trust; 0 is never.")
]


@dataclass(frozen=True)
class ClientOptions:
    """Which network to use, and where the client keeps its files."""

    home: Home = None
    rpc: RpcUrl = None
    deployment: DeploymentFile = None

    def settings(self, model: str | None = None) -> Settings:
        """Flags override the environment, efedllm.toml and the local network's file, in this order.

        Also sets up logging. Raises ConfigError.
        """
        from efedllm import logs
        from efedllm.settings import Settings

        settings = Settings.load(**self._flags(), model_id=model)
        logs.setup(settings.log_level, settings.log_format)
        own = settings.home / WALLET_FILE
        if settings.keystore is None and own.exists():
            settings = settings.model_copy(update={"keystore": own})
        return settings

    def _flags(self) -> dict[str, Any]:
        return {"home": self.home, "rpc_url": self.rpc, "deployment": self.deployment}


@dataclass(frozen=True)
class WalletOptions(ClientOptions):
    """Which network to use, and which wallet pays."""

    keystore: Keystore = None
    password_file: PasswordFile = None

    def _flags(self) -> dict[str, Any]:
        return {**super()._flags(), "keystore": self.keystore, "password_file": self.password_file}


@dataclass(frozen=True)
class RouteFlags:
    """Which nodes may work, and what they may cost."""

    route: RouteNames = None
    avoid: AvoidNames = None
    max_price: MaxPrice = None
    deposit: Deposit = None
    new_session: NewSession = False
    explore: Explore = ClientConfig.explore_share

    def options(self) -> RouteOptions:
        """Raises ConfigError for an amount that is no number."""
        from efedllm.chain.amounts import GWEI, parse_amount
        from efedllm_client.jobs.options import RouteOptions

        return RouteOptions(
            nodes=names(self.route),
            avoid=names(self.avoid),
            max_price=None if self.max_price is None else parse_amount(self.max_price) // GWEI,
            deposit=None if self.deposit is None else parse_amount(self.deposit),
            fresh_session=self.new_session,
            explore=self.explore,
        )


@dataclass(frozen=True)
class SamplingFlags:
    """How tokens are generated."""

    max_tokens: MaxTokens = 64
    temperature: Temperature = 0.0
    top_k: TopK = 0
    top_p: TopP = 1.0
    seed: Seed = None
    wire: Wire = "f32"
    min_quality: MinQuality = None

    def options(self, route: RouteFlags, *, stop_at_eos: bool = True) -> GenerateOptions:
        """Raises ConfigError for an amount that is no number."""
        from efedllm_client.jobs.options import GenerateOptions

        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return GenerateOptions(**values, stop_at_eos=stop_at_eos, route=route.options())


def names(text: str | None) -> tuple[str, ...]:
    """The items of a comma separated list."""
    return tuple(item.strip() for item in (text or "").split(",") if item.strip())
