"""A client against real node processes on Ganache: the right tokens, receipts that link, no loss when a node dies."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from efedllm.chain.amounts import WEI, cost_of_tokens
from efedllm.errors import ConfigError, EfedError
from efedllm_client.api import Client
from efedllm_client.config import ClientConfig
from efedllm_client.jobs.context import JobContext
from efedllm_client.jobs.failover import RouteSwitched
from efedllm_client.jobs.generation import Generation, GenerationFinished, Piece, RouteStarted
from efedllm_client.jobs.options import GenerateOptions, RouteOptions
from efedllm_client.jobs.report import report_of
from efedllm_client.payments.session import Sessions
from efedllm_client.routes.choose import Candidate
from efedllm_client.text.tokenizer import ModelTokenizer
from efedllm_deploy.layout import NetworkOptions
from efedllm_deploy.network import LocalNetwork, Member
from tests.model_fixtures import use_model
from tests.network.generate_kit import (
    PROMPT,
    efedllm,
    expected,
    link_faults,
    member,
    prompt_ids,
    start,
    text_of,
)

pytestmark = [pytest.mark.network, pytest.mark.asyncio(loop_scope="module")]

GREEDY = GenerateOptions(max_tokens=24)
SAMPLED = GenerateOptions(max_tokens=40, temperature=0.9, top_k=50, top_p=0.95, seed="11", stop_at_eos=False)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def network(default_model: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalNetwork]:
    """Every layer on two nodes, no verifiers."""
    home = tmp_path_factory.mktemp("network")
    use_model(home, default_model)
    async with LocalNetwork(NetworkOptions(home=home, nodes=4, verifiers=0)) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def client(network: LocalNetwork) -> AsyncIterator[Client]:
    async with Client.connect(home=network.home, config=ClientConfig(retries=2)) as connected:
        yield connected


async def test_the_route_gives_the_tokens_of_one_engine_and_receipts_that_link(
    network: LocalNetwork, client: Client
) -> None:
    ids = await prompt_ids(client)
    text = await text_of(client, GREEDY)
    report = client.report
    assert report is not None
    assert report.token_ids == expected(network.model_dir, ids, GREEDY)
    assert report.text == text
    assert report.receipts_ok
    assert (report.faults, report.failovers, len(report.receipts)) == ([], [], 2)
    assert [(hop["lo"], hop["hi"]) for hop in report.route] == [(0, 4), (4, 8)]
    assert report.bytes_in > 0
    assert report.bytes_out > 0
    price = sum(network_price(network, hop["node"]) for hop in report.route)
    assert report.cost_wei == cost_of_tokens(len(ids) + 24, price)
    (path,) = report.receipt_files
    assert link_faults(network, path) == []


def network_price(network: LocalNetwork, address: str) -> int:
    place = member(network, address).place
    assert place is not None
    return place.price


async def test_sampling_is_fixed_by_the_seed(network: LocalNetwork, client: Client) -> None:
    await text_of(client, SAMPLED)
    assert client.report is not None
    assert client.report.token_ids == expected(network.model_dir, await prompt_ids(client), SAMPLED)


async def test_the_bundled_model_is_exact_and_not_rounded_between_the_nodes(client: Client) -> None:
    model = await client.model()
    assert (model.profile, any(model.constants_hash)) == (1, True)
    with pytest.raises(ConfigError) as caught:
        await text_of(client, GenerateOptions(max_tokens=2, wire="bf16"))
    assert caught.value.code == "bad-option"


async def test_jobs_share_a_session(network: LocalNetwork, client: Client) -> None:
    await text_of(client, GREEDY)
    assert client.report is not None
    first = client.report
    await text_of(client, GREEDY)
    assert client.report.session_id == first.session_id
    assert client.report.job_id != first.job_id
    view = next(v for v in await client.sessions() if "0x" + v.session_id.hex() == first.session_id)
    assert view.promised <= view.deposit
    assert view.promised >= cost_of_tokens(view.tokens, network_price_of(network, view.nodes))


def network_price_of(network: LocalNetwork, nodes: tuple[str, ...]) -> int:
    return sum(network_price(network, node) for node in nodes)


async def test_the_command_line(network: LocalNetwork, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    code, out, err = await efedllm(network, "generate", PROMPT, "--max-tokens", "8", "--report", str(file))
    assert code == 0, err
    report = json.loads(file.read_text())
    assert out == report["text"] + "\n"
    assert report["receipts_ok"]
    assert len(err.splitlines()) == 1
    code, out, err = await efedllm(network, "generate", PROMPT, "--max-tokens", "8", "--json")
    assert code == 0, err
    assert json.loads(out)["token_ids"] == report["token_ids"]
    code, out, err = await efedllm(network, "network", "--json")
    view = json.loads(out)
    (model,) = view["models"]
    assert (len(model["nodes"]), model["uncovered"]) == (4, [])
    assert all(node["latency_ms"] > 0 for node in model["nodes"])
    code, out, err = await efedllm(network, "network")
    assert code == 0, err
    assert network.nodes[0].address[:10] in out


async def test_errors_say_what_to_do(network: LocalNetwork, client: Client) -> None:
    tail = [node.address for node in network.nodes if node.place is not None and node.place.lo == 4]

    async def failing(model: str | None = None, route: RouteOptions | None = None, **options: Any) -> ConfigError:
        with pytest.raises(ConfigError) as caught:
            await text_of(client, GenerateOptions(**options, route=route or RouteOptions()), model)
        assert caught.value.hint
        return caught.value

    assert (await failing(model="0xdead")).code == "unknown-model"
    uncovered = await failing(route=RouteOptions(avoid=tuple(tail)))
    assert uncovered.code == "layers-not-covered"
    assert "4..7 of 8" in uncovered.message
    assert (await failing(route=RouteOptions(nodes=(tail[0],)))).code == "route-gap"
    assert (await failing(route=RouteOptions(avoid=("0x0123456789",)))).code == "unknown-node"
    assert (await failing(route=RouteOptions(deposit=10**12, fresh_session=True))).code == "deposit-too-small"
    assert (await failing(max_tokens=100_000)).code == "too-long"
    assert (await failing(temperature=-1.0)).code == "bad-option"


async def test_another_chain_or_password(network: LocalNetwork, tmp_path: Path) -> None:
    other = tmp_path / "other-chain.json"
    other.write_text(network.deployment_path.read_text().replace('"chain_id": 1337', '"chain_id": 5'))
    password = tmp_path / "password"
    password.write_text("wrong\n")
    for words, wanted in (
        (("--deployment", str(other)), "wrong-chain"),
        (("--password-file", str(password)), "wrong-password"),
    ):
        code, out, err = await efedllm(network, "generate", PROMPT, "--json", *words)
        assert code == 1, err
        assert json.loads(out)["error"]["code"] == wanted


async def test_a_conversation(network: LocalNetwork) -> None:
    receipts = network.home / "receipts"
    before = set(receipts.iterdir()) if receipts.exists() else set()
    words = ("chat", "--max-tokens", "4", "--seed", "3")
    code, out, err = await efedllm(network, *words, typed="hello\n/reset\nand now?\n/quit\nnever\n")
    assert code == 0, err
    assert len(out.splitlines()) >= 2
    assert len(err.splitlines()) >= 2
    told = [json.loads(path.read_text()) for path in set(receipts.iterdir()) - before]
    assert [receipt["complete"] for receipt in told] == [True, True]


async def test_a_wallet_without_money(network: LocalNetwork, tmp_path: Path) -> None:
    wallet = tmp_path / "poor.json"
    code, _, err = await efedllm(
        network, "wallet", "new", "--light", "--keystore", str(wallet), EFEDLLM_PASSWORD="secret"
    )
    assert code == 0, err
    words = ("generate", PROMPT, "--json", "--keystore", str(wallet))
    code, out, _ = await efedllm(network, *words, EFEDLLM_PASSWORD="secret")
    error = json.loads(out)["error"]
    assert (code, error["code"]) == (1, "insufficient-balance")
    assert error["hint"]


async def test_ctrl_c_is_clean_and_the_session_stays_usable(network: LocalNetwork) -> None:
    # On a busy machine a generation, as long as the model allows, may be over before the signal comes.
    for _ in range(3):
        process = await start(network, "generate", PROMPT, "--max-tokens", "950", "--no-stop-at-eos")
        assert process.stdout is not None
        assert await process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        _, err = await asyncio.wait_for(process.communicate(), 30)
        assert b"Traceback" not in err
        if process.returncode != 0:
            break
    assert process.returncode == 130
    code, _, text = await efedllm(network, "generate", PROMPT, "--max-tokens", "8")
    assert code == 0, text


async def test_a_killed_client_goes_on_in_its_session_without_paying_twice(
    network: LocalNetwork, client: Client
) -> None:
    process = await start(network, "generate", PROMPT, "--max-tokens", "300", "--no-stop-at-eos")
    assert process.stdout is not None
    assert await process.stdout.read(1)
    process.kill()
    await process.communicate()
    sessions = {view.session_id: view for view in await client.sessions()}
    code, out, err = await efedllm(network, "generate", PROMPT, "--max-tokens", "8", "--json")
    assert code == 0, err
    used = bytes.fromhex(json.loads(out)["session_id"][2:])
    after = {view.session_id: view for view in await client.sessions()}
    for session_id, view in sessions.items():
        assert after[session_id].promised >= view.promised
        assert after[session_id].promised <= after[session_id].deposit
    assert after[used].promised > 0


@pytest.mark.parametrize("position", [0, 1])
async def test_killing_a_node_in_the_middle_changes_no_token(
    network: LocalNetwork, client: Client, position: int
) -> None:
    whole = expected(network.model_dir, await prompt_ids(client), SAMPLED)
    seen: list[int] = []
    switches: list[RouteSwitched] = []
    victim: Member | None = None
    async with aclosing(client.events(PROMPT, SAMPLED)) as events:
        async for event in events:
            if isinstance(event, RouteStarted) and victim is None:
                victim = member(network, event.route.hops[position].address)
            elif isinstance(event, RouteSwitched):
                switches.append(event)
            elif isinstance(event, Piece):
                seen.append(event.token)
                if len(seen) == 9:
                    assert victim is not None
                    assert victim.managed is not None
                    os.kill(victim.managed.child.pid, signal.SIGKILL)
    assert victim is not None
    assert [switch.avoided for switch in switches] == [(victim.address,)]
    assert seen == whole
    report = client.report
    assert report is not None
    assert report.receipts_ok
    assert victim.address not in [hop["node"] for hop in report.route]
    assert link_faults(network, report.receipt_files[-1]) == []
    # Asked for by name, it is an error that names it; then it comes back.
    with pytest.raises(ConfigError) as caught:
        await text_of(client, GenerateOptions(max_tokens=2, route=routed(network, victim)))
    assert caught.value.code == "node-unreachable"
    assert victim.address in caught.value.message
    await network.stop_member(victim)
    await network.start_node(victim)
    await text_of(client, GenerateOptions(max_tokens=2, route=routed(network, victim)))


async def bought_at(client: Client, retries: int) -> tuple[JobContext, ModelTokenizer, list[Candidate]]:
    """Where to buy, with the real candidates; `retries`: further routes tried."""
    model = await client.model()
    candidates = await client.nodes(model)
    account = client.chain.account
    assert account is not None
    sessions = Sessions(client.chain, client.store, account, client.settings.home / "client")
    context = JobContext(client.chain, sessions, client.settings.home, model, ClientConfig(retries=retries))
    return context, await client.tokenizer(model, candidates), candidates


class Misled(Generation):
    """A generation whose third token arrives as another one, as from a node that invents it."""

    def push(self, token: int) -> Piece:
        return super().push(token + 1 if self.results() == 2 else token)


async def killed_after_nine(network: LocalNetwork, work: Generation, victims: list[Member]) -> None:
    """Runs all of `work`; the last node of its first route, added to `victims`, dies after nine tokens."""
    count = 0
    async with aclosing(work.events()) as events:
        async for event in events:
            if isinstance(event, RouteStarted) and not victims:
                victims.append(member(network, event.route.hops[-1].address))
            count += isinstance(event, Piece)
            managed = victims[0].managed if victims else None
            if isinstance(event, Piece) and count == 9 and managed is not None:
                os.kill(managed.child.pid, signal.SIGKILL)


async def test_an_invented_token_of_a_route_that_breaks_off_is_noticed_on_the_next(
    network: LocalNetwork, client: Client
) -> None:
    context, tokenizer, candidates = await bought_at(client, retries=2)
    work = Misled(context, tokenizer, await prompt_ids(client), SAMPLED, candidates)
    victims: list[Member] = []
    with pytest.raises(EfedError) as caught:
        await killed_after_nine(network, work, victims)
    assert caught.value.code == "tokens-differ"
    assert "Generated token 3 " in caught.value.message
    failures = [job.failure.code for job in work.jobs if job.failure is not None]
    assert (len(work.jobs), failures[-1]) == (2, "tokens-differ")
    (victim,) = victims
    await network.stop_member(victim)
    await network.start_node(victim)


async def doubted(client: Client, newcomer: str) -> tuple[JobContext, ModelTokenizer, list[Candidate]]:
    """As `bought_at`, with candidates that are alike, but everybody except `newcomer` is trusted."""
    context, tokenizer, candidates = await bought_at(client, retries=0)
    alike = [replace(c, latency_ms=1.0, queue=0, trust_ppm=900_000) for c in candidates]
    return context, tokenizer, [replace(c, trust_ppm=0) if c.address == newcomer else c for c in alike]


async def test_a_newcomer_is_tried_and_one_that_fails_costs_no_attempt(network: LocalNetwork, client: Client) -> None:
    newcomer = next(node for node in network.nodes if node.place is not None and node.place.lo == 4)
    context, tokenizer, candidates = await doubted(client, newcomer.address)
    ids = await prompt_ids(client)
    never, always = (replace(GREEDY, route=RouteOptions(explore=share)) for share in (0.0, 1.0))
    for options, tried in ((never, []), (always, [newcomer.address])):
        work = Generation(context, tokenizer, ids, options, candidates)
        finished = [event async for event in work.events()][-1]
        assert isinstance(finished, GenerationFinished)
        report = report_of(finished, PROMPT, network.model_id)
        assert report.token_ids == expected(network.model_dir, ids, GREEDY)
        assert (report.explored, report.failovers, report.receipts_ok) == (tried, [], True)
        assert (newcomer.address in [hop["node"] for hop in report.route]) == bool(tried)
    await network.stop_member(newcomer)
    work = Generation(context, tokenizer, ids, always, candidates)
    events = [event async for event in work.events()]
    await network.start_node(newcomer)
    assert [event.avoided for event in events if isinstance(event, RouteSwitched)] == [(newcomer.address,)]
    assert isinstance(events[-1], GenerationFinished)
    assert list(events[-1].token_ids) == expected(network.model_dir, ids, GREEDY)


def routed(network: LocalNetwork, through: Member) -> RouteOptions:
    """A route that uses `through`."""
    assert through.place is not None
    others = [node for node in network.nodes if node.place is not None and node.place.lo != through.place.lo]
    nodes = sorted([through, others[0]], key=lambda n: n.place.lo if n.place else 0)
    return RouteOptions(nodes=tuple(node.address for node in nodes))


async def test_closing_gives_the_rest_back(client: Client) -> None:
    await text_of(client, GREEDY)
    done = await client.close_sessions()
    assert done
    assert {item.outcome for item in done} <= {"closing", "closed"}
    grace = await client.chain.contracts.session_escrow.grace()
    await client.chain.rpc.request("evm_increaseTime", [grace + 1])
    await client.chain.rpc.request("evm_mine", [])
    withdrawal = await client.withdraw()
    held = await client.balances()
    assert held.in_sessions == held.escrow == 0
    assert 900 * WEI < held.efed < 1000 * WEI
    assert withdrawal.amount > 0
