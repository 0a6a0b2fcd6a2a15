"""The flags of `efedllm node`, as annotations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Rpc = Annotated[str | None, typer.Option("--rpc", metavar="URL", help="RPC address of the chain.")]
DeploymentFile = Annotated[Path | None, typer.Option("--deployment", help="File that `efedllm deploy` wrote.")]
Keystore = Annotated[Path | None, typer.Option("--keystore", help="Encrypted account of the node's operator.")]
PasswordFile = Annotated[Path | None, typer.Option("--password-file", help="File with the account's password.")]
ModelId = Annotated[str | None, typer.Option("--model-id", metavar="0xHEX", help="Registered model to serve.")]
Layers = Annotated[str | None, typer.Option("--layers", metavar="LO:HI", help="Layers LO up to, not including, HI.")]
Price = Annotated[int | None, typer.Option("--price", help="Gwei of EFED for 1000 tokens through all our layers.")]
Models = Annotated[
    list[str] | None, typer.Option("--model", metavar="DIR|URL", help="Where the published model is. Repeatable.")
]
Listen = Annotated[str, typer.Option("--listen", metavar="HOST:PORT", help="Address to serve on; port 0 takes any.")]
Endpoint = Annotated[
    str | None, typer.Option("--endpoint", metavar="URL", help="http://HOST:PORT as others reach this node.")
]
Home = Annotated[Path | None, typer.Option("--home", help="The node's own directory.")]
NetworkHome = Annotated[Path | None, typer.Option("--home", help="Where `efedllm up` keeps its network.")]
Stake = Annotated[str | None, typer.Option("--stake", metavar="EFED", help="Stake this much if less is staked.")]
Credit = Annotated[int, typer.Option("--credit-tokens", help="Tokens worked ahead of payment, beyond the prompt.")]
Ram = Annotated[
    str | None,
    typer.Option(
        "--ram",
        metavar="SIZE",
        help="Memory for weights, caches and activations, such as 2GB; slower when they need more.",
    ),
]
ContractSigners = Annotated[
    bool,
    typer.Option("--allow-contract-signers", help="Serve sessions whose signer was a contract when they opened."),
]
Retire = Annotated[bool, typer.Option("--retire", help="Leave the registry when stopped.")]
