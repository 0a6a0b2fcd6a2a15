"""Epochs of an exact model on real contracts: who attests without having computed loses, who computed earns."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from efedllm.chain.reverts import RevertError
from efedllm.commitments.canonical import WireDtype, decode
from efedllm.commitments.hashing import ZERO32, keccak
from efedllm.commitments.messages import HopCommit
from efedllm.commitments.taps import TapTree
from efedllm.compression import CompressOptions, compress
from efedllm.compression.profile import settle_profile
from efedllm.engine.exact.shard import ExactShardEngine
from efedllm.engine.protocol import StepItem
from efedllm.engine.taps import TAP_BYTES
from efedllm.sampling.exact import sample_exact
from efedllm_verifier.app import AuditsNodes, Verifier
from efedllm_verifier.attestation import NodeVerdict
from efedllm_verifier.audit_report import AuditTask, LeafReport, NodeAudit, attested_digest
from efedllm_verifier.statistic import Outcome
from efedllm_verifier.verdict import Verdict, pack_verdict
from tests.verifier.audit_lab import BUNDLED, PROMPT, RANGES, Trace, decode_route
from tests.verifier.audit_network import (
    VERIFIERS,
    Network,
    committed,
    drive,
    enter_verifier,
    judged,
    own_contracts,
    revealed,
    rolled_back,
    staked_network,
)
from tests.verifier.epoch_kit import NEW, WARM, verdicts
from tests.verifier.served_node import Job

pytestmark = pytest.mark.asyncio(loop_scope="module")

TAP_DIFFERS, NO_REVEAL = 3, 1


@dataclass(frozen=True)
class ExactJob(Job):
    """`aux_roots[hop]`: what the hop commits to as the root over its taps."""

    aux_roots: tuple[bytes, ...] = ()

    def commit(self, hop: int) -> HopCommit:
        return replace(super().commit(hop), profile=1, aux_root=self.aux_roots[hop])


@pytest.fixture(scope="module")
def exact_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exact") / "model"
    compress(CompressOptions(model=str(BUNDLED), out=out, quant="int8", method="int8"))
    settle_profile(out, "exact")
    return out


@pytest.fixture(scope="module")
def engines(exact_model: Path) -> list[ExactShardEngine]:
    return [ExactShardEngine.load(exact_model, *layers) for layers in RANGES]


@pytest.fixture(scope="module")
def honest(engines: list[ExactShardEngine]) -> Trace:
    return decode_route(engines, PROMPT, NEW, WireDtype.F32, WARM, sample_exact)


@pytest.fixture(scope="module")
def taps(engines: list[ExactShardEngine], honest: Trace) -> list[bytes]:
    """Every hop's taps, as its node stored them."""
    found = []
    for hop, engine in enumerate(engines):
        kind, dim = (WireDtype.I32, 1) if hop == 0 else (WireDtype.F32, engine.hidden)
        given = decode(honest.boundaries[hop], kind, dim)
        (tapped,) = engine.step_with_taps([StepItem(engine.new_sequence(), given[:, 0] if hop == 0 else given)])
        found.append(tapped.taps.tobytes())
    return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def staked(ganache: str, tmp_path_factory: pytest.TempPathFactory, exact_model: Path) -> AsyncIterator[Network]:
    home = tmp_path_factory.mktemp("network")
    async with own_contracts(ganache, home) as live, staked_network(live, home, exact_model) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def network(staked: Network, tmp_path: Path) -> AsyncIterator[Network]:
    async with rolled_back(staked, tmp_path) as made:
        yield made


async def work(network: Network, trace: Trace, aux: Callable[[bytes, int], bytes]) -> int:
    """Let an epoch of one job pass; `aux`: (job id, hop) to the committed aux root."""
    epoch = (await network.now()).epoch + 1
    await network.clock.skip_to(epoch, 0.1)
    job = network.job(trace, epoch, WARM, PROMPT, NEW)
    roots = tuple(aux(job.spec.job_id, hop) for hop in range(len(RANGES)))
    await network.serve([ExactJob(**job.__dict__, aux_roots=roots)])
    await network.post({})
    return epoch


def true_root(taps: Sequence[bytes], job_id: bytes, hop: int) -> bytes:
    tree = TapTree(job_id, hop, TAP_BYTES)
    tree.append(taps[hop])
    return tree.root()


class LazyAuditor:
    """Passes every node without reading anything, beside a digest that it made up. Stands in for any auditor."""

    def __init__(self, _inner: AuditsNodes) -> None:
        pass

    async def audit(self, task: AuditTask) -> NodeAudit:
        verdict = pack_verdict(Verdict(10, 0, False))
        return NodeAudit(NodeVerdict(task.node, verdict, keccak(b"nothing"), secrets.token_bytes(32)), (), Path("none"))

    async def prepare(self, _batch: Any) -> None:
        return None


async def stake(network: Network, index: int) -> int:
    return (await network.admin.contracts.stake_vault.stake_of(network.chain_address(index))).active


async def outcomes(network: Network, epoch: int) -> dict[str, tuple[int, int]]:
    """Verifier -> (outcome, points)."""
    return {
        event.args["verifier"]: (event.args["outcome"], event.args["points"])
        for event in await network.admin.history("VerifierCommittee", "VerifierJudged")
        if event.args["epoch"] == epoch
    }


async def revealed_taps(network: Network, epoch: int) -> dict[str, dict[str, bytes]]:
    """Verifier -> node -> tap digest."""
    return {
        event.args["verifier"]: dict(zip(event.args["nodes"], event.args["taps"], strict=True))
        for event in await network.admin.history("VerifierCommittee", "Revealed")
        if event.args["epoch"] == epoch
    }


async def test_a_lazy_verifier_loses_points_and_stake_and_the_honest_ones_earn(
    network: Network, honest: Trace, taps: list[bytes]
) -> None:
    lazy = VERIFIERS[2]
    async with AsyncExitStack() as stack:
        running: list[Verifier] = []
        for index in VERIFIERS:
            wrapper = LazyAuditor if index == lazy else None
            running.append(await enter_verifier(stack, network.config(index), wrapper))
        before = {index: await stake(network, index) for index in VERIFIERS}
        epoch = await work(network, honest, lambda job, hop: true_root(taps, job, hop))
        await network.clock.skip_to_phase(epoch + 1, 0, 0.02)
        await drive(network, running, lambda: committed(network, epoch))
        await network.clock.skip_to_phase(epoch + 1, 1)
        await drive(network, running, lambda: revealed(network, epoch))
        await network.clock.skip_to_phase(epoch + 1, 2)
        await drive(network, running, lambda: judged(network, epoch))

        assert await verdicts(network, epoch) == {network.node(hop): {Verdict(10, 0, False)} for hop in range(3)}
        shown = await revealed_taps(network, epoch)
        first, second = (shown[network.chain_address(index)] for index in VERIFIERS[:2])
        assert first == second
        assert len(set(first.values())) == 3
        assert ZERO32 not in first.values()
        for hop in range(3):
            tally = await network.admin.contracts.verifier_committee.tally_of(epoch, network.node(hop))
            assert tally.tap == int.from_bytes(first[network.node(hop)][-4:])
        found = await outcomes(network, epoch)
        for index in VERIFIERS[:2]:
            assert found[network.chain_address(index)] == (0, 30)
            assert await stake(network, index) == before[index]
        assert found[network.chain_address(lazy)] == (TAP_DIFFERS, 0)
        assert await stake(network, lazy) == before[lazy] * 98 // 100


async def test_a_copied_commitment_cannot_be_opened(network: Network, honest: Trace, taps: list[bytes]) -> None:
    source, copier = VERIFIERS[0], VERIFIERS[2]
    async with AsyncExitStack() as stack:
        running = [await enter_verifier(stack, network.config(index)) for index in VERIFIERS[:2]]
        chain = await stack.enter_async_context(await network.live.connect(copier))
        before = await stake(network, copier)
        epoch = await work(network, honest, lambda job, hop: true_root(taps, job, hop))
        await network.clock.skip_to_phase(epoch + 1, 0, 0.02)
        await drive(network, running, lambda: committed(network, epoch, VERIFIERS[:2]))
        seen = await chain.contracts.verifier_committee.commitment_of(epoch, network.chain_address(source))
        await chain.contracts.verifier_committee.commit(epoch, seen)
        await network.clock.skip_to_phase(epoch + 1, 1)
        await drive(network, running, lambda: revealed(network, epoch, VERIFIERS[:2]))
        # Everything the honest verifier revealed is public by then, its salt in the transaction's data.
        kept = await running[0]._store.attestation(epoch)
        assert kept is not None
        with pytest.raises(RevertError) as caught:
            await chain.contracts.verifier_committee.reveal(
                epoch, kept.nodes, kept.verdicts, kept.taps, kept.evidence, kept.salt
            )
        assert caught.value.name == "CommitmentMismatch"
        await network.clock.skip_to_phase(epoch + 1, 2)
        await drive(network, running, lambda: judged(network, epoch))
        found = await outcomes(network, epoch)
        assert found[network.chain_address(copier)] == (NO_REVEAL, 0)
        assert await stake(network, copier) < before
        assert found[network.chain_address(source)] == (0, 30)


async def test_a_node_that_commits_to_other_taps_is_slashed_and_no_verifier_is(
    network: Network, honest: Trace, taps: list[bytes]
) -> None:
    def one_lies(job: bytes, hop: int) -> bytes:
        return keccak(b"made up") if hop == 1 else true_root(taps, job, hop)

    async with AsyncExitStack() as stack:
        running = [await enter_verifier(stack, network.config(index)) for index in VERIFIERS]
        before = {index: await stake(network, index) for index in VERIFIERS}
        epoch = await work(network, honest, one_lies)
        for phase, done in ((0, committed), (1, revealed), (2, judged)):
            await network.clock.skip_to_phase(epoch + 1, phase, 0.02 if phase == 0 else 0.0)
            await drive(network, running, lambda done=done: done(network, epoch))  # type: ignore[misc]
        said = await verdicts(network, epoch)
        assert said[network.node(1)] == {Verdict(0, 10, True)}
        assert said[network.node(0)] == said[network.node(2)] == {Verdict(10, 0, False)}
        for shown in (await revealed_taps(network, epoch)).values():
            assert shown[network.node(1)] == ZERO32
            assert ZERO32 not in (shown[network.node(0)], shown[network.node(2)])
        failures = await network.admin.history("VerifierCommittee", "NodeFailed")
        assert [(e.args["node"], e.args["severe"]) for e in failures if e.args["epoch"] == epoch] == [
            (network.node(1), True)
        ]
        for index in VERIFIERS:
            assert await stake(network, index) == before[index]
            assert (await outcomes(network, epoch))[network.chain_address(index)] == (0, 30)


async def test_the_tap_digest_is_attested_only_when_every_leaf_passed() -> None:
    def leaf(number: int, outcome: Outcome = Outcome.PASS, tap: bytes = b"") -> LeafReport:
        code = "" if outcome is Outcome.PASS else "wrong-output"
        return LeafReport(0, number, keccak(bytes([number])), 10, outcome, code, tap=tap)

    tapped = [leaf(i, tap=keccak(b"tap" + bytes([i]))) for i in range(3)]
    assert attested_digest(tapped) == attested_digest(reversed(tapped)) != ZERO32
    # Leaves of a float model have none; they do not keep those of an exact one from being attested.
    assert attested_digest([*tapped, leaf(9)]) == attested_digest(tapped)
    assert attested_digest([leaf(9)]) == attested_digest([]) == ZERO32
    for bad in (Outcome.FAIL, Outcome.SEVERE):
        assert attested_digest([*tapped[:2], leaf(2, bad)]) == attested_digest([leaf(2, bad)]) == ZERO32
    withheld = LeafReport(0, -1, keccak(b"root"), 10, Outcome.FAIL, "batch-withheld")
    assert attested_digest([*tapped, withheld]) == ZERO32
