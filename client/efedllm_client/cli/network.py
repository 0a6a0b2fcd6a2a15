"""`efedllm network`: models, the nodes that serve them, their prices, latency and trust."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from efedllm_client.cli.common import print_json, run_with_client
from efedllm_client.cli.options import ClientOptions, Json, Model, expand_options

if TYPE_CHECKING:
    from efedllm_client.api import Client

HELP = "Models, the nodes that serve them, verifiers and the epoch."

STANDING = ("excluded", "probation", "active")
WIDE = 140  # columns from which whole addresses fit; their first digits do for --route and --avoid
QUANT_NAMES = {0: "none", 1: "int8", 2: "packed"}
PROFILE_NAMES = {0: "float", 1: "exact"}
STATUS = ("none", "active", "paused", "retired")


@expand_options
def network(options: ClientOptions, model: Model = None, json_: Json = False) -> None:
    async def work(client: Client) -> None:
        view = await network_view(client, model)
        if json_:
            print_json(view)
        else:
            show(view)

    run_with_client(options.settings(), work, read_only=True)


async def network_view(client: Client, wanted: str | None) -> dict[str, Any]:
    """The network as plain data: {epoch, models: [{..., nodes, layers_covered}], verifiers}."""
    import asyncio

    from efedllm_client.routes.choose import uncovered
    from efedllm_client.routes.discovery import choose_model, probe_all
    from efedllm_client.routes.quality import card_json, fetch_card

    chain = client.chain
    models, nodes, verifiers, now = await asyncio.gather(chain.models(), chain.nodes(), chain.verifiers(), chain.now())
    if wanted is not None:
        models = [choose_model(models, wanted)]
    candidates = {c.address: c for c in await probe_all(nodes, chain.chain_id, client.config.probe_seconds)}
    offered = {i.model_id: [candidates[n.address] for n in nodes if n.model_id == i.model_id] for i in models}
    cards = await asyncio.gather(
        *(fetch_card(info, [c.endpoint for c in offered[info.model_id] if c.usable]) for info in models)
    )
    shown = []
    for info, card in zip(models, cards, strict=True):
        mine = sorted((n for n in nodes if n.model_id == info.model_id), key=lambda n: (n.lo, n.hi, n.address))
        usable = [candidate for candidate in offered[info.model_id] if candidate.usable]
        missing = uncovered(usable, info.layers)
        shown.append(
            {
                "model_id": "0x" + info.model_id.hex(),
                "status": "active" if info.status == 1 else "deprecated",
                "layers": info.layers,
                "hidden": info.hidden,
                "keep_bps": info.rank_bps,
                "quant": QUANT_NAMES.get(info.quant, str(info.quant)),
                "profile": PROFILE_NAMES.get(info.profile, str(info.profile)),
                **card_json(card),
                "uri": info.uri,
                "uncovered": [[lo, hi] for lo, hi in missing],
                "nodes": [
                    {
                        "node": n.address,
                        "endpoint": n.endpoint,
                        "lo": n.lo,
                        "hi": n.hi,
                        "price_gwei_per_ktok": n.price_per_ktok,
                        "trust_ppm": n.trust_ppm,
                        "standing": STANDING[n.standing],
                        "status": STATUS[n.status],
                        "stake_wei": n.stake_active,
                        "offences": n.offences,
                        "latency_ms": _rounded(candidates[n.address].latency_ms),
                        "problem": candidates[n.address].problem,
                    }
                    for n in mine
                ],
            }
        )
    return {
        "chain_id": chain.chain_id,
        "block": now.block,
        "epoch": now.epoch,
        "epoch_fraction": round(now.fraction, 3),
        "models": shown,
        "verifiers": [{"verifier": v.address, "stake_wei": v.stake, "active": v.active} for v in verifiers],
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def quality_line(model: dict[str, Any]) -> str:
    """Profile, method and certified quality of a model on one line."""
    head = f"{model['profile']} profile, {model['method'] or 'unknown method'}"
    certificate = model["certificate"]
    if certificate is None:
        return f"{head}; no certificate: {model['why']}"
    texts = ", ".join(
        f"{text['name']} {text['perplexity'] / text['perplexity_original'] - 1:+.2%} perplexity, "
        f"top-1 {text['top1']:.1%}"
        for text in certificate["texts"]
    )
    return f"{head}, {model['bytes_saved']:.0%} of the bytes saved, quality {model['quality']:.4f}: {texts}"


def show(view: dict[str, Any]) -> None:
    """Print the network as tables."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from efedllm.chain.amounts import GWEI, format_amount

    console = Console()
    console.print(
        f"chain {view['chain_id']}, block {view['block']}, epoch {view['epoch']} ({view['epoch_fraction']:.0%})",
        highlight=False,
    )
    if not view["models"]:
        console.print("no models are registered", highlight=False)
    for model in view["models"]:
        missing = ", ".join(f"{lo}..{hi - 1}" for lo, hi in model["uncovered"])
        cover = f"layers without a usable node: {missing}" if missing else "every layer is served"
        name = f"model {model['model_id'][:10]} ({model['status']})"
        console.print(f"\n{name}, {model['layers']} layers of {model['hidden']}; {cover}", highlight=False)
        console.print(quality_line(model), highlight=False)
        table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        table.add_column("node", no_wrap=True, min_width=10)
        for name in ("layers", "EFED/1k", "trust", "standing", "stake", "latency"):
            table.add_column(name, justify="left" if name == "standing" else "right", no_wrap=True)
        table.add_column("endpoint", overflow="fold")
        for node in model["nodes"]:
            latency = "-" if node["latency_ms"] is None else f"{node['latency_ms']:.1f} ms"
            standing = node["standing"] if node["status"] == "active" else node["status"]
            table.add_row(
                node["node"] if console.width >= WIDE else node["node"][:10],
                f"{node['lo']}..{node['hi'] - 1}",
                format_amount(node["price_gwei_per_ktok"] * GWEI, ""),
                f"{node['trust_ppm'] / 1e6:.3f}",
                standing,
                format_amount(node["stake_wei"], ""),
                latency,
                node["endpoint"].removeprefix("http://") + (f" ({node['problem']})" if node["problem"] else ""),
            )
        console.print(table)
    console.print(f"{len(view['verifiers'])} verifiers", highlight=False)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in ("verifier", "stake", "seat"):
        table.add_column(name)
    for verifier in view["verifiers"]:
        seat = "active" if verifier["active"] else "next epoch"
        table.add_row(verifier["verifier"], format_amount(verifier["stake_wei"], ""), seat)
    if view["verifiers"]:
        console.print(table)
