"""Starting, stopping, being killed: what a node process promises about its port, its home and its work."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from efedllm.chain import Deployment, format_amount
from efedllm.chain.amounts import WEI
from efedllm.chain.types import NodeInfo
from efedllm.checkout import project_root
from efedllm.errors import ChainError, ConfigError, EfedError, ModelError
from efedllm_deploy.process import tie_to_parent
from efedllm_node.app import NodeApp
from efedllm_node.config import NodeConfig
from tests.node.node_kit import PASSWORD, Lab, eventually
from tests.node.raw_client import RawClient, open_session
from tests.node.test_generation import PROMPT, get

ROOT = project_root()


async def refused(config: NodeConfig) -> EfedError:
    """The error with which a node does not start."""
    app = NodeApp(config)
    with pytest.raises(EfedError) as caught:
        await app.start()
    return caught.value


async def test_a_restart_sends_no_transaction_and_frees_home_and_port(lab: Lab) -> None:
    app = await lab.start(1, (0, 8))
    port = int(app.endpoint.rsplit(":", 1)[1])
    before = await lab.chain.node(app.address)
    await lab.stop(app)
    nonce = await lab.chain.rpc.integer("eth_getTransactionCount", [app.address, "latest"])
    again = await lab.launch(replace(app.config, listen_port=port, layers=None, price=None, model_id=None))
    assert again.endpoint == app.endpoint
    assert await lab.chain.rpc.integer("eth_getTransactionCount", [app.address, "latest"]) == nonce
    assert await lab.chain.node(app.address) == before


async def test_another_price_and_endpoint_are_updated(lab: Lab) -> None:
    app = await lab.start(1, (0, 8))
    await lab.stop(app)
    again = await lab.launch(replace(app.config, price=app.config.price + 1 if app.config.price else 1))
    info = await lab.chain.node(app.address)
    assert info.endpoint == again.endpoint != app.endpoint
    epoch = (await lab.chain.now()).epoch
    await lab.live.clock(lab.chain).skip_to(epoch + 1, 0.01)
    assert (await lab.chain.node(app.address)).price_per_ktok == again.config.price


async def test_a_second_node_on_the_port_or_in_the_home_is_refused(lab: Lab) -> None:
    app = await lab.start(1, (0, 8))
    port = int(app.endpoint.rsplit(":", 1)[1])
    error = await refused(await lab.config(2, (0, 8), listen_port=port))
    assert (error.code, str(port) in error.message) == ("port-in-use", True)
    error = await refused(app.config)
    assert (error.code, str(app.config.home) in error.message) == ("home-in-use", True)
    status, body, _ = await get(f"{app.endpoint}/healthz")
    assert (status, json.loads(body)) == (200, {"status": "ok"})


async def test_starts_that_cannot_work_say_why(lab: Lab, tmp_path: Path) -> None:
    config = await lab.config(3, (0, 8))
    wrong_chain = tmp_path / "99.json"
    Deployment.load(lab.live.path).model_copy(update={"chain_id": 99}).save(wrong_chain)
    cases: list[tuple[NodeConfig, type[EfedError], str]] = [
        (replace(config, deployment=wrong_chain), ChainError, "wrong-chain"),
        (replace(config, password="wrong"), ConfigError, "wrong-password"),
        (replace(config, layers=(0, 9)), ConfigError, "bad-layers"),
        (replace(config, layers=None), ConfigError, "not-registered"),
        (replace(config, stake=WEI), ConfigError, "stake-too-low"),
        (replace(config, model_id=bytes(32)), ChainError, "unknown-model"),
        (replace(config, models=(str(tmp_path),)), ModelError, "not-published"),
        (replace(config, stake=10**6 * WEI), ChainError, "revert:ERC20InsufficientBalance"),
    ]
    for wrong, kind, code in cases:
        error = await refused(wrong)
        assert error.code == code
        assert isinstance(error, kind)
        assert error.message
    # None of these left a lock or a port behind.
    await lab.launch(config)


async def test_weights_with_a_flipped_bit_are_not_served(lab: Lab, tmp_path: Path) -> None:
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(lab.model_dir, broken)
    file = broken / "layer-0001.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    config = await lab.config(1, (0, 8), models=(str(broken),))
    error = await refused(config)
    assert error.code == "corrupt-weights"
    assert (await lab.chain.node(lab.live.account(1).address)).status == 0


async def test_a_node_can_fetch_its_layers_from_another(lab: Lab, tmp_path: Path) -> None:
    whole = await lab.start(1, (0, 8))
    part = await lab.start(2, (5, 8), models=(str(tmp_path / "nothing"), f"{whole.endpoint}/v1/model"))
    files = {path.name for path in (part.config.home / "model").rglob("*") if path.is_file()}
    assert "layer-0007.safetensors" in files
    assert "layer-0000.safetensors" not in files
    status, _, _ = await get(f"{part.endpoint}/v1/model/files/layer-0000.safetensors")
    assert status == 404
    status, _, _ = await get(f"{part.endpoint}/v1/model/files/..%2Fnode.sqlite")
    assert status == 404


async def test_info_and_metrics(lab: Lab) -> None:
    app = await lab.start(1, (0, 8))
    async with await lab.client() as client:
        await client.generate(PROMPT, 4, 20)
    _, body, _ = await get(f"{app.endpoint}/v1/info")
    info = json.loads(body)
    assert (info["node"], info["lo"], info["hi"], info["jobs"]) == (app.address, 0, 8, 0)
    assert info["model_id"] == "0x" + lab.model_id.hex()
    _, body, _ = await get(f"{app.endpoint}/metrics")
    text = body.decode()
    assert "efedllm_node_tokens_total 4.0" in text
    assert 'efedllm_node_jobs_total{end="done"} 1.0' in text
    for path in ("/v1/boundaries/zz", "/v1/batches/x", "/v1/jobs/12/receipt"):
        status, body, _ = await get(f"{app.endpoint}{path}")
        assert (status, json.loads(body)["error"]["code"]) == (400, "bad-request")
    status, _, _ = await get(f"{app.endpoint}/v1/boundaries/{'00' * 32}")
    assert status == 404


# --- as a process ---


class NodeProcess:
    """`python -m efedllm_node run` on its own."""

    def __init__(self, process: Process, ready: dict[str, Any]) -> None:
        self.process = process
        self.ready = ready

    @classmethod
    async def start(cls, config: NodeConfig) -> NodeProcess:
        process = await spawn(config)
        assert process.stdout is not None
        async with asyncio.timeout(120):
            line = await process.stdout.readline()
        if not line:
            assert process.stderr is not None
            raise AssertionError((await process.stderr.read()).decode())
        return cls(process, json.loads(line))

    async def info(self, lab: Lab) -> NodeInfo:
        return await lab.chain.node(self.ready["address"])


async def spawn(config: NodeConfig, *more: str, module: str = "efedllm_node", layers: str = "0:8") -> Process:
    password = config.home.parent / "password"
    password.write_text(PASSWORD)
    assert config.model_id is not None
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", module, "run", "--rpc", config.rpc_url, "--deployment", str(config.deployment)),
        *("--keystore", str(config.keystore), "--password-file", str(password), "--home", str(config.home)),
        *("--model-id", "0x" + config.model_id.hex(), "--layers", layers, "--price", str(config.price)),
        *("--model", config.models[0], "--listen", f"127.0.0.1:{config.listen_port}"),
        *("--stake", format_amount(config.stake or 0, "")),
        *more,
        cwd=ROOT,
        stdout=PIPE,
        stderr=PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=tie_to_parent(os.getpid()),
    )


async def test_killed_mid_job_a_node_keeps_its_receipts_and_posts_them_once(lab: Lab) -> None:
    config = await lab.config(1, (0, 8))
    clock = lab.live.clock(lab.chain)
    epoch = (await lab.chain.now()).epoch + 1
    node = await NodeProcess.start(config)
    await clock.skip_to(epoch, 0.01)
    assert node.ready["event"] == "ready"
    assert node.ready["pid"] == node.process.pid
    session = await open_session(lab.chain, lab.model_id, [await node.info(lab)])
    async with RawClient(lab.chain, session, [await node.info(lab)]) as client:
        spec, outcome = await client.generate(PROMPT, 5, 10)
        unfinished = client.spec(PROMPT, 50)
        await client.open_job(unfinished, PROMPT, 80)
        await client.start(unfinished)
        for _ in range(3):
            await client.receive()
        node.process.send_signal(signal.SIGKILL)
        await node.process.wait()
    # The same home again, in this process: the lock of a killed one does not hold.
    app = await lab.launch(config)
    assert await app.store.receipt(spec.job_id) == outcome.commits[0]
    assert await app.store.receipt(unfinished.job_id) is None
    assert await app.store.counts() == {"done": 1, "aborted": 1}
    assert await lab.post_batches() == epoch
    (posted,) = await lab.chain.batches(epoch)
    assert posted.count == 1
    info = await lab.chain.session(session.session_id)
    assert info.settled == client.voucher(80).voucher.cumulative


async def test_sigterm_drains_and_a_node_process_exits_with_zero(lab: Lab) -> None:
    config = await lab.config(1, (0, 8))
    epoch = (await lab.chain.now()).epoch + 1
    node = await NodeProcess.start(config)
    await lab.live.clock(lab.chain).skip_to(epoch, 0.05)
    session = await open_session(lab.chain, lab.model_id, [await node.info(lab)])
    async with RawClient(lab.chain, session, [await node.info(lab)]) as client:
        await client.generate(PROMPT, 5, 10)
    clash = await spawn(replace(config, listen_port=int(node.ready["endpoint"].rsplit(":", 1)[1])), "--json")
    out, _ = await clash.communicate()
    assert clash.returncode == 1
    assert json.loads(out)["error"]["code"] == "home-in-use"
    node.process.terminate()
    async with asyncio.timeout(60):
        assert await node.process.wait() == 0

    async def posted() -> bool:
        return [batch.count for batch in await lab.chain.batches(epoch)] == [1]

    await eventually(posted, "the batch is on chain")
    assert (await lab.chain.session(session.session_id)).settled == client.voucher(10).voucher.cumulative
