"""A small HTTP server for a published model: exactly the files of its manifest, with ranges for resuming."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import web

from efedllm.errors import ConfigError, listen_error

if TYPE_CHECKING:
    from efedllm.models.manifest import Manifest


def parse_listen(text: str) -> tuple[str, int]:
    """("127.0.0.1", 8080) of "127.0.0.1:8080". Raises ConfigError "bad-listen"."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or not 0 <= int(port) < 65536:
        raise ConfigError("bad-listen", f"{text!r} is not an address to listen on.", "Pass --listen HOST:PORT")
    return host.strip("[]") or "0.0.0.0", int(port)


def model_app(directory: Path, manifest: Manifest) -> web.Application:
    """GET /manifest.json and /NAME for each file of the manifest; nothing else of the directory."""
    names = frozenset({"manifest.json", *(item.name for item in manifest.files)})

    async def file(request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        if name not in names:
            raise web.HTTPNotFound(text=f"{name} is not a file of this model\n")
        return web.FileResponse(directory / name)

    app = web.Application()
    app.router.add_get("/{name}", file)
    return app


async def start_server(app: web.Application, host: str, port: int) -> tuple[web.AppRunner, int]:
    """Serve until the runner is cleaned up; returns the port in use (for port 0). Raises ConfigError "port-in-use"."""
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        await runner.cleanup()
        raise listen_error(host, port, error) from error
    return runner, int(runner.addresses[0][1])
