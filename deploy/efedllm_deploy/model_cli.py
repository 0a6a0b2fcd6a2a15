"""Compress a model, measure it, publish it on chain, inspect it, serve its files."""

from __future__ import annotations

import asyncio
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from efedllm import logs
from efedllm.chain import Chain, Deployment
from efedllm.cli import DeploymentFile, Json, Keystore, PasswordFile, RpcUrl
from efedllm.models.manifest import Method
from efedllm.settings import Settings
from efedllm_deploy.cli_common import console, entry, open_account, print_json, run
from efedllm_deploy.publish import PublishedModel, publish
from efedllm_deploy.serve import model_app, parse_listen, start_server

app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)

_COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(),
    TextColumn("{task.completed}/{task.total}"),
    TimeElapsedColumn(),
    TimeRemainingColumn(),
)

Directory = Annotated[Path, typer.Option("--dir", help="Folder of a published model.")]


@app.command()
def compress(
    model: Annotated[str, typer.Option(help="Folder or hub id of a transformers checkpoint.")],
    out: Annotated[Path, typer.Option(help="Folder to write the published model to.")],
    keep: Annotated[
        float | None, typer.Option(help="Fraction of each matrix's parameters to keep; 1 keeps all.")
    ] = None,
    quant: Annotated[
        str, typer.Option(help="int8 or none: token embeddings, and the matrices of truncate, whiten and kfac.")
    ] = "int8",
    method: Annotated[
        str | None,
        typer.Option(help="truncate, whiten, kfac, int8, lowrank+int4 or auto. With --keep truncate, else auto."),
    ] = None,
    budget: Annotated[
        float | None, typer.Option(help="Bytes of the layers' matrices, as a fraction of 16-bit ones, e.g. 0.3.")
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="Text file for all but truncate and int8; else the model's own.")
    ] = None,
    calibration_tokens: Annotated[int, typer.Option(help="Tokens of it to use.")] = 32_768,
    stack: Annotated[bool, typer.Option("--stack", help="whiten: one v for q, k, v and for gate, up.")] = False,
    all_factored: Annotated[bool, typer.Option("--all-factored", help="kfac: no matrix stays dense.")] = False,
    heal: Annotated[int, typer.Option(min=0, help="Steps of distilling the factors against the original.")] = 0,
    engine: Annotated[str, typer.Option(help="process, or ray: layers as tasks of a Ray cluster.")] = "process",
    profile: Annotated[
        str,
        typer.Option(help="exact (the same bits on every machine), float, or auto: exact where the model allows it."),
    ] = "auto",
    as_json: Json = False,
) -> None:
    """Write the published form of a model: factors, few-bit integers, manifest with hashes. Resumes."""
    from efedllm.compression import CompressOptions
    from efedllm.compression import compress as run_compress
    from efedllm.compression.profile import check_choice, settle_profile, wants_integers

    choice = check_choice(profile)
    options = CompressOptions(
        model=model,
        out=out,
        keep=1.0 if keep is None else keep,
        # Checked by compress itself, with its own message.
        quant=cast(Literal["none", "int8"], quant),
        method=cast(Method, method or ("auto" if keep is None else "truncate")),
        budget=budget,
        calibration=calibration,
        calibration_tokens=calibration_tokens,
        stack=stack,
        all_factored=all_factored,
        heal=heal,
        engine=cast(Literal["process", "ray"], engine),
        integers=quant == "int8" and wants_integers(model, choice),
    )
    with Progress(*_COLUMNS, console=console, disable=as_json) as progress:
        task = progress.add_task("compressing", total=None)
        run_compress(options, lambda done, total, _eta: progress.update(task, completed=done, total=total))
        checking = progress.add_task("profile", total=None)
        settled = settle_profile(
            out, choice, lambda done, total: progress.update(checking, completed=done, total=total)
        )
    manifest = settled.manifest
    result = {"dir": str(out), "weights_root": manifest.weights_root, "manifest_hash": manifest.hash()}
    if as_json:
        print_json({**result, "profile": manifest.profile, "reason": settled.reason})
    else:
        _show_inspection(out)
        console.print(f"profile {manifest.profile}" + (f": {settled.reason}" if settled.reason else ""))


@app.command()
def evaluate(
    model: Annotated[Path, typer.Option(help="Folder of a published model.")],
    original: Annotated[str, typer.Option(help="Folder or hub id of the checkpoint it was made from.")],
    text: Annotated[
        list[Path] | None,
        typer.Option(help="Held-out text file; repeat it for several. Else those beside the original."),
    ] = None,
    window: Annotated[int, typer.Option(help="Tokens the models see at a time.")] = 512,
    tokens: Annotated[int | None, typer.Option(help="Use at most this many tokens of each text.")] = None,
    as_json: Json = False,
) -> None:
    """Measure a published model against its original and certify it in its manifest. Do this before publishing."""
    from transformers.utils.logging import disable_progress_bar

    from efedllm.compression import EvaluateOptions
    from efedllm.compression import evaluate as run_evaluate

    disable_progress_bar()
    options = EvaluateOptions(model, original, tuple(text or ()), window, tokens)
    with Progress(*_COLUMNS, console=console, disable=as_json) as progress:
        task = progress.add_task("evaluating", total=None)
        manifest = run_evaluate(options, lambda done, total: progress.update(task, completed=done, total=total))
    assert manifest.certificate is not None
    certificate = manifest.certificate
    if as_json:
        result = {"certificate": certificate.model_dump(mode="json"), "manifest_hash": manifest.hash()}
        print_json({"dir": str(model), **result, "weights_root": manifest.weights_root})
        return
    table = Table(title=f"{model}: {certificate.bytes_saved:.1%} of the bytes saved")
    for column in ("text", "tokens", "perplexity", "original", "increase", "KL, nats", "top-1"):
        table.add_column(column)
    for one in certificate.texts:
        figures = (f"{one.perplexity:.3f}", f"{one.perplexity_original:.3f}", f"{one.increase:+.2%}")
        table.add_row(one.name, f"{one.tokens:,}", *figures, f"{one.kl:.5f}", f"{one.top1:.2%}")
    console.print(table)


@app.command(name="publish")
def publish_command(
    directory: Directory,
    uri: Annotated[str, typer.Option(help="Where nodes can fetch the files, e.g. https://host/model.")] = "",
    rpc: RpcUrl = None,
    deployment: DeploymentFile = None,
    keystore: Keystore = None,
    password_file: PasswordFile = None,
    home: Annotated[Path | None, typer.Option(help="Folder of a local network.")] = None,
    as_json: Json = False,
) -> None:
    """Register a model on chain. Publishing the same model again finds it and sends nothing."""
    settings = Settings.load(
        home=home, rpc_url=rpc, deployment=deployment, keystore=keystore, password_file=password_file
    )
    logs.setup(settings.log_level, settings.log_format)
    published: PublishedModel | None = run(_publish(settings, directory, uri))
    if published is None:
        raise typer.Exit(130)
    _advise(directory)
    if as_json:
        print_json({**vars(published), "already": not published.tx})
        return
    state = f"registered, {published.gas:,} gas, {published.tx}" if published.tx else "registered already"
    console.print(f"{state}; files at {published.uri or '(no address: nodes need --model)'}")
    print("0x" + published.model_id.hex())


def _advise(directory: Path) -> None:
    """Says what a publisher may have forgotten; on stderr."""
    from efedllm.models.manifest import Manifest

    manifest = Manifest.load(directory)
    if manifest.certificate is None:
        console.print("note: no certificate, so that clients cannot ask for its quality: `efedllm model evaluate`")
    if manifest.profile == "float" and manifest.tolerance is None:
        console.print("note: no limits of its own, audited by wide ones: `efedllm model calibrate`, then publish")


async def _publish(settings: Settings, directory: Path, uri: str) -> PublishedModel:
    deployment = Deployment.load(settings.need_deployment())
    account = open_account(settings, deployment.chain_id)
    async with await Chain.connect(settings.need_rpc(), deployment, account, budget=settings.rpc_budget) as chain:
        return await publish(chain, directory, uri)


@app.command()
def inspect(
    directory: Annotated[Path, typer.Argument(help="Folder of a published model.")], as_json: Json = False
) -> None:
    """Show what a published model consists of and what compression saved."""
    if as_json:
        print_json(_inspection(directory))
    else:
        _show_inspection(directory)


def _inspection(directory: Path) -> dict[str, Any]:
    from efedllm.compression import inspect as run_inspect

    return run_inspect(directory)


def _show_inspection(directory: Path) -> None:
    table = Table(title=str(directory), show_header=False)
    for name, value in _inspection(directory).items():
        shown = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else value
        if name == "certificate":
            shown = _certificate_line(value)
        elif name == "compression":
            shown = _compression_line(value)
        elif name == "ranks":
            shown = "\n".join(f"{kind}: {' '.join(map(str, ranks))}" for kind, ranks in value.items())
        elif isinstance(value, dict):
            shown = ", ".join(f"{key} {size:,}" for key, size in value.items())
        elif isinstance(value, float):
            shown = f"{value:.3f}"
        table.add_row(name, str(shown))
    console.print(table)


def _compression_line(report: dict[str, Any] | None) -> str:
    if report is None:
        return "not noted"
    line = f"{report['seconds']:.1f} s, at most {report['peak_memory'] / 1e6:,.0f} MB, {report['threads']} threads"
    if report["heal"] is None:
        return line
    from efedllm.compression.heal import sparkline

    heal = report["heal"]
    return f"{line}\nhealing {sparkline(heal['losses'])} on text kept apart {heal['before']:.4f} -> {heal['after']:.4f}"


def _certificate_line(certificate: dict[str, Any] | None) -> str:
    if certificate is None:
        return "none: see `efedllm model evaluate`"
    return "; ".join(
        f"{one['name']}: perplexity {one['perplexity']:.3f}"
        f" ({one['perplexity'] / one['perplexity_original'] - 1:+.2%}), KL {one['kl']:.5f}, top-1 {one['top1']:.2%}"
        for one in certificate["texts"]
    )


@app.command()
def serve(
    directory: Directory,
    listen: Annotated[str, typer.Option(help="HOST:PORT; port 0 takes a free one.")] = "127.0.0.1:8480",
    as_json: Json = False,
) -> None:
    """Serve a published model's files over HTTP until Ctrl-C."""
    host, port = parse_listen(listen)
    run(_serve(directory, host, port, as_json))


async def _serve(directory: Path, host: str, port: int, as_json: bool) -> None:
    from efedllm.models.manifest import Manifest

    runner, bound = await start_server(model_app(directory, Manifest.load(directory)), host, port)
    url = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{bound}"
    try:
        if as_json:
            print_json({"event": "ready", "url": url})
        else:
            console.print(f"serving {directory} at {url}; nodes fetch it with --model {url}. Ctrl-C ends.")
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


for _entry in sorted(entry_points(group="efedllm.commands.model"), key=lambda item: item.name):
    app.command(_entry.name)(_entry.load())


if __name__ == "__main__":
    entry(app)
