"""The wheel: what it holds, and that everything of a client works from it, far from any checkout."""

from __future__ import annotations

import asyncio
import json
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from efedllm.chain.artifacts import CONTRACTS
from efedllm_deploy.layout import NetworkOptions
from efedllm_deploy.network import LocalNetwork
from tests.model_fixtures import ROOT, use_model
from tests.packaging.built import build_sdist, build_wheel, checked, install, metadata, run

pytestmark = pytest.mark.network

COMMANDS = (
    "generate",
    "chat",
    "embed",
    "network",
    "wallet",
    "dispute",
    "bench",
    "demo",
    "deploy",
    "model",
    "node",
    "up",
)
LIBRARIES = ("libproducts.so", "libsteps.so", "libkeccak.so")


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_sdist(tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the C libraries where the checkout has them."""
    return build_wheel(sdist, tmp_path_factory.mktemp("wheel") / "native", native=True)[0]


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel, without torch."""
    return install(wheel, tmp_path_factory.mktemp("environment") / "venv")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def network(default_model: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalNetwork]:
    """Two nodes, started from the checkout."""
    home = tmp_path_factory.mktemp("network")
    use_model(home, default_model)
    async with LocalNetwork(NetworkOptions(home=home, nodes=2, verifiers=0)) as running:
        yield running


def test_the_wheel_holds_our_packages_and_what_they_read(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    tops = {name.split("/")[0] for name in names}
    ours = {"efedllm", *(f"efedllm_{role}" for role in ("node", "client", "verifier", "deploy", "bench"))}
    assert {top for top in tops if not top.endswith(".dist-info")} == ours
    folders = {"efedllm/chain/artifacts": "*.json", "deploy/efedllm_deploy/profiles": "*.toml", "models/pylib-7m": "*"}
    for folder, pattern in folders.items():
        files = [path.name for path in (ROOT / folder).glob(pattern)]
        inside = "efedllm_deploy/pylib-7m" if folder.startswith("models") else folder.removeprefix("deploy/")
        assert files
        assert {f"{inside}/{name}" for name in files} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    # Whatever a checkout can import, a wheel can.
    for source in (path for role in ("node", "client", "verifier", "deploy", "bench") for path in modules(role)):
        assert source in names
    built = [name for name in LIBRARIES if (ROOT / "efedllm" / "kernels" / name).exists()]
    assert {f"efedllm/kernels/{name}" for name in built} <= names
    assert wheel.name.startswith("efedllm_network-")
    assert "-py3-none-any" in wheel.name if not built else "-py3-none-any" not in wheel.name
    assert "-py3-none-" in wheel.name


def modules(role: str) -> list[str]:
    """The modules of a role by their names in a wheel."""
    return [path.relative_to(ROOT / role).as_posix() for path in (ROOT / role).rglob("*.py")]


def test_a_client_gets_no_torch_and_is_asked_for_no_exact_versions(wheel: Path) -> None:
    described = metadata(wheel)
    needs = [text for text in described.get_all("Requires-Dist") or [] if "extra ==" not in text]
    assert needs
    for text in needs:
        assert "==" not in text
        assert not text.startswith(("torch", "transformers"))
    assert described["License-Expression"] == "MIT"
    assert {text.split(",")[0] for text in described.get_all("Project-URL") or []} == {"Documentation", "Source"}


def test_without_a_compiler_a_wheel_for_every_platform_is_built_and_says_so(sdist: Path, tmp_path: Path) -> None:
    wheel, log = build_wheel(sdist, tmp_path / "plain", native=False)
    assert "-py3-none-any" in wheel.name
    assert "without a C compiler" in log
    assert "will be slower" in log
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".so")]


def test_every_command_answers_in_an_empty_folder(programs: Path, tmp_path: Path) -> None:
    home = {"EFEDLLM_HOME": str(tmp_path / "home")}
    place = checked(str(programs / "python"), "-c", "import efedllm_client as c; print(c.__file__)", cwd=tmp_path)
    assert Path(place.strip()).is_relative_to(programs.parent)
    assert run(str(programs / "python"), "-c", "import torch", cwd=tmp_path).returncode == 1
    version = metadata_version(programs, tmp_path)
    assert checked(str(programs / "efedllm"), "--version", cwd=tmp_path) == f"efedllm {version}\n"
    shown = checked(str(programs / "efedllm"), "--help", cwd=tmp_path)
    for command in COMMANDS:
        assert f"  {command} " in shown
    assert "Not part of this installation" not in shown
    for command in ("generate", "wallet", "deploy", "up"):
        assert "Usage" in checked(str(programs / "efedllm"), command, "--help", cwd=tmp_path, **home)
    for command in ("up", "demo"):
        done = run(str(programs / "efedllm"), command, "--json", cwd=tmp_path, **home)
        assert (done.returncode, json.loads(done.stdout)["error"]["code"]) == (1, "missing-extra")
    assert not (tmp_path / "home").exists()


def metadata_version(programs: Path, folder: Path) -> str:
    program = "from importlib.metadata import version; print(version('efedllm-network'))"
    return checked(str(programs / "python"), "-c", program, cwd=folder).strip()


@pytest.mark.asyncio(loop_scope="module")
async def test_it_buys_an_inference_from_a_network(programs: Path, network: LocalNetwork, tmp_path: Path) -> None:
    async def efedllm(*words: str) -> str:
        return await asyncio.to_thread(checked, str(programs / "efedllm"), *words, cwd=tmp_path)

    home = ("--home", str(network.home), "--json")
    report = json.loads(await efedllm("generate", "def f(", "--max-tokens", "8", *home))
    assert (len(report["token_ids"]), report["faults"]) == (8, [])
    held = json.loads(await efedllm("wallet", "balance", *home))
    assert held["in_sessions"] > 0
    view = json.loads(await efedllm("network", *home))
    assert [len(model["nodes"]) for model in view["models"]] == [2]


@pytest.mark.asyncio(loop_scope="module")
async def test_it_deploys_the_contracts(programs: Path, network: LocalNetwork, tmp_path: Path) -> None:
    words = ("deploy", "--rpc", network.rpc_url, "--out", str(tmp_path / "out"), "--json")
    done = json.loads(await asyncio.to_thread(checked, str(programs / "efedllm"), *words, cwd=tmp_path))
    assert set(done["contracts"]) == set(CONTRACTS)
    assert done["contracts"]["EfedToken"] != network.chain.address("EfedToken")
