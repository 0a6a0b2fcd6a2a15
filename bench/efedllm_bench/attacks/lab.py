"""Real jobs of a real route, hop by hop, and the verdict of the verifier's own code on any of them.

One route of engines generates jobs once. A cheat then runs one hop of such a job over the same committed input,
decoding as a node does; a commitment is made and signed over what it sent, and `efedllm_verifier.leaf` and
`efedllm_verifier.rerun` judge it. Nothing here knows what a cheat did.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from efedllm.checkout import project_root
from efedllm.commitments.boundary import BoundaryTree
from efedllm.commitments.canonical import WireDtype, decode, encode
from efedllm.commitments.eip712 import Domain
from efedllm.commitments.hashing import ZERO32, as_address, keccak
from efedllm.commitments.leaves import hop_leaf
from efedllm.commitments.messages import HopCommit, JobSpec, SessionKey, ids_hash
from efedllm.commitments.signing import Signer
from efedllm.commitments.taps import TapTree
from efedllm.compression import CompressOptions, compress
from efedllm.engine.exact.shard import ExactShardEngine
from efedllm.engine.protocol import Executor, StepItem
from efedllm.engine.taps import TAP_BYTES, TapExecutor
from efedllm.errors import EfedError
from efedllm.models.manifest import PROFILE_CODES, Manifest
from efedllm.models.tolerance import Tolerance
from efedllm.sampling.exact import sample_exact
from efedllm.sampling.float import SamplingSpec, sample
from efedllm_bench.cheats.catalog import NumericProfile, Shop
from efedllm_verifier.leaf import JobTerms, Leaf, Registration, check_leaf
from efedllm_verifier.rerun import HopResult, rerun
from efedllm_verifier.statistic import Limits

BUNDLED = project_root() / "models" / "pylib-7m"
RANGES = ((0, 3), (3, 6), (6, 8))
LAYERS = 8
DOMAIN = Domain(1337, "0x" + "11" * 20)
ESCROW = (1337, "0x" + "22" * 20)
EPOCH = 5
GREEDY = SamplingSpec(0, 0, 1_000_000, bytes(32))
WARM = SamplingSpec(900, 50, 950_000, bytes(range(32)))

NODES = tuple(as_address("0x" + keccak(f"node {hop}".encode())[12:].hex()) for hop in range(len(RANGES)))
SIGNERS = tuple(Signer(keccak(f"signer {hop}".encode())) for hop in range(len(RANGES)))
CLIENT = Signer(keccak(b"client"))
MODEL_ID = keccak(b"model")

Rows = npt.NDArray[np.float32]


Tensors = dict[str, Any]


def publish(
    profile: NumericProfile,
    work: Path,
    *,
    keep: float = 0.9,
    whiten: bool = True,
    change: Callable[[Tensors], Tensors] | None = None,
    tolerance: Tolerance | None = None,
) -> Path:
    """The bundled model: low-rank factors in int8 for the exact profile, in float32 for the float profile.

    The checkpoint is bf16; factors in bf16 would make rounding to bf16 no cheat, so they are made in float32. `change`
    edits the float32 checkpoint first. `tolerance`: of the float profile, as measured; without it the manifest has none
    until `efedllm_bench.attacks.lab_limits` measures one.
    """
    out = work / f"published-{profile}"
    method: Any = "whiten" if whiten else "truncate"
    source = BUNDLED if profile == "exact" and change is None else _as_float32(work / "float32", change)
    calibration = BUNDLED / "calibration.txt" if whiten else None
    quant: Any = "int8" if profile == "exact" else "none"
    manifest = compress(CompressOptions(str(source), out, keep, quant, method, calibration))
    if profile == "exact" and manifest.profile != "exact":
        constants = ExactShardEngine.load(out, 0, 1).constants_hash
        manifest.with_profile("exact", constants).save(out)
    if profile == "float" and tolerance is not None:
        manifest.model_copy(update={"tolerance": tolerance}).save(out)
    return out


def _as_float32(out: Path, change: Callable[[Tensors], Tensors] | None) -> Path:
    from safetensors.torch import load_file, save_file

    out.mkdir(parents=True)
    for path in BUNDLED.iterdir():
        if path.suffix == ".json":
            shutil.copy(path, out)
    config = out / "config.json"
    config.write_text(config.read_text().replace('"bfloat16"', '"float32"'))
    tensors: Tensors = {name: tensor.float() for name, tensor in load_file(BUNDLED / "model.safetensors").items()}
    save_file(tensors if change is None else change(tensors), out / "model.safetensors", metadata={"format": "pt"})
    return out


def prompts(count: int, length: int) -> list[tuple[int, ...]]:
    """Token ids of `count` pieces of the text beside the bundled model."""
    tokenizer = Tokenizer.from_file(str(BUNDLED / "tokenizer.json"))
    text = (BUNDLED / "calibration.txt").read_text()[: 40 * count * length]
    ids = tokenizer.encode(text).ids
    step = max(length, (len(ids) - length) // count)
    return [tuple(int(i) for i in ids[at : at + length]) for at in range(0, count * step, step)]


@dataclass(frozen=True)
class LabJob:
    """A finished honest job: what the client signed, the canonical bytes of every boundary, the tokens."""

    spec: JobSpec
    prompt: tuple[int, ...]
    boundaries: tuple[bytes, ...]
    emitted: tuple[int, ...]

    @property
    def wire(self) -> WireDtype:
        return WireDtype(self.spec.wire_dtype)

    @property
    def positions(self) -> int:
        return len(self.boundaries[0]) // 4


class Lab:
    """Engines of the honest route, which are the verifier's too, and jobs that they generated. `limits`: those that a
    verifier judges the published model by, from its manifest.
    """

    def __init__(self, profile: NumericProfile, published: Path, work: Path) -> None:
        self.profile = profile
        self.published = published
        shop = Shop(published, work, profile)
        self.engines: tuple[Executor, ...] = tuple(shop.load(*layers) for layers in RANGES)
        self.manifest = Manifest.load(published)
        self.limits = Limits.of(self.manifest.tolerance)
        self.hidden = self.manifest.hidden
        self.jobs: list[LabJob] = []
        self._work = work
        self._aux_roots: dict[tuple[bytes, int, bytes], bytes] = {}

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        new: int,
        *,
        sampling: SamplingSpec = WARM,
        wire: WireDtype = WireDtype.F32,
        engines: Sequence[Executor] | None = None,
        together: bool = False,
    ) -> list[LabJob]:
        """Jobs as a route of nodes makes them: prefill once, then one position at a time, fed from the wire's bytes.
        `together`: all of them in one batch of every step.
        """
        numbered = [(index, tuple(prompt)) for index, prompt in enumerate(prompts)]
        batches = [numbered] if together else [[one] for one in numbered]
        return [
            job for batch in batches for job in self._jobs(batch, new, sampling, wire, tuple(engines or self.engines))
        ]

    def _jobs(
        self,
        numbered: Sequence[tuple[int, tuple[int, ...]]],
        new: int,
        sampling: SamplingSpec,
        wire: WireDtype,
        engines: tuple[Executor, ...],
    ) -> list[LabJob]:
        specs = [spec_of(index, prompt, new, sampling, wire) for index, prompt in numbered]
        sequences = [[engine.new_sequence() for _ in numbered] for engine in engines]
        rows: list[list[list[bytes]]] = [[[] for _ in range(len(engines) + 1)] for _ in numbered]
        emitted: list[list[int]] = [[] for _ in numbered]
        feeds = [np.asarray(prompt, np.int32) for _, prompt in numbered]
        for step in range(new):
            for own, feed in zip(rows, feeds, strict=True):
                own[0].append(encode(feed.reshape(-1, 1), WireDtype.I32))
            states: list[npt.NDArray[Any]] = list(feeds)
            for hop, (engine, held) in enumerate(zip(engines, sequences, strict=True)):
                outputs = engine.step([StepItem(sequence, x) for sequence, x in zip(held, states, strict=True)])
                payloads = [encode(output, wire) for output in outputs]
                for own, payload in zip(rows, payloads, strict=True):
                    own[hop + 1].append(payload)
                states = [decode(payload, wire, self.hidden) for payload in payloads]
            for (_, prompt), tokens, x in zip(numbered, emitted, states, strict=True):
                tokens.append(self.choose(engines[-1], np.ascontiguousarray(x[-1:]), sampling, len(prompt) + step))
            feeds = [np.asarray(tokens[-1:], np.int32) for tokens in emitted]
        return [
            LabJob(spec, prompt, tuple(b"".join(parts) for parts in own), tuple(tokens))
            for spec, (_, prompt), own, tokens in zip(specs, numbered, rows, emitted, strict=True)
        ]

    def choose(self, engine: Executor, hidden: Rows, sampling: SamplingSpec, position: int) -> int:
        """The sampler of a node."""
        row = engine.logits(hidden)[0]
        return sample_exact(row, sampling, position) if self.profile == "exact" else sample(row, sampling, position)

    def inputs(self, job: LabJob, hop: int) -> npt.NDArray[Any]:
        """What a hop read: int32 ids [n] or float32 [n, hidden]."""
        if hop == 0:
            return decode(job.boundaries[0], WireDtype.I32, 1)[:, 0].astype(np.int32)
        return np.asarray(decode(job.boundaries[hop], job.wire, self.hidden), np.float32)

    def outputs(self, job: LabJob, hop: int) -> Rows:
        """What the honest hop sent."""
        return np.asarray(decode(job.boundaries[hop + 1], job.wire, self.hidden), np.float32)

    def decode_hop(self, executor: Executor, job: LabJob, hop: int) -> bytes:
        """What `executor` sends as hop `hop` of the job: prefill of the prompt, then one position at a time."""
        rows = decoded(executor, self.inputs(job, hop), len(job.prompt))
        return encode(rows, job.wire)

    def shop(self, stale: LabJob | None = None) -> Shop:
        """What a cheat has at hand; `stale` is an earlier job whose rows it kept."""
        kept = {} if stale is None else {layers: self.outputs(stale, hop) for hop, layers in enumerate(RANGES)}
        return Shop(self.published, self._work, self.profile, kept)

    def registration(self, hop: int) -> Registration:
        """What the chain says about the node of hop `hop`."""
        lo, hi = RANGES[hop]
        signers = frozenset({SIGNERS[hop].address})
        root = self.manifest.shard_root(lo, hi)
        profile = PROFILE_CODES[self.profile]
        return Registration(NODES[hop], signers, MODEL_ID, lo, hi, root, LAYERS, self.hidden, profile)

    def commit(self, job: LabJob, hop: int, **changes: Any) -> HopCommit:
        """The commitment of one hop over the bytes of `job`."""
        roots = []
        for boundary in (hop, hop + 1):
            dtype, dim = (WireDtype.I32, 1) if boundary == 0 else (job.wire, self.hidden)
            tree = BoundaryTree(job.spec.job_id, boundary, dtype, dim)
            tree.append(job.boundaries[boundary])
            roots.append(tree.root())
        lo, hi = RANGES[hop]
        commit = HopCommit(
            job_id=job.spec.job_id,
            spec_hash=job.spec.digest(DOMAIN),
            hop=hop,
            lo=lo,
            hi=hi,
            profile=PROFILE_CODES[self.profile],
            wire_dtype=job.spec.wire_dtype,
            tokens=job.positions,
            model_id=MODEL_ID,
            shard_root=self.manifest.shard_root(lo, hi),
            in_root=roots[0],
            out_root=roots[1],
            tokens_hash=ids_hash(job.emitted) if hop == len(RANGES) - 1 else ZERO32,
            aux_root=self.aux_root(job, hop),
            prev_commit=ZERO32,
            epoch=EPOCH,
        )
        return replace(commit, **changes)

    def aux_root(self, job: LabJob, hop: int) -> bytes:
        """Root over the taps of what the hop read, as an honest node commits to them; zero in the float profile, and of
        inputs that nothing can be computed from.
        """
        if self.profile != "exact":
            return ZERO32
        key = (job.spec.job_id, hop, job.boundaries[hop])
        if key not in self._aux_roots:
            engine, tree = cast(TapExecutor, self.engines[hop]), TapTree(job.spec.job_id, hop, TAP_BYTES)
            try:
                (tapped,) = engine.step_with_taps([StepItem(engine.new_sequence(), self.inputs(job, hop))])
            except EfedError:
                return ZERO32
            tree.append(tapped.taps.tobytes())
            self._aux_roots[key] = tree.root()
        return self._aux_roots[key]

    def leaf(self, job: LabJob, hop: int, commit: HopCommit | None = None, signer: Signer | None = None) -> Leaf:
        """The leaf that the node of hop `hop` puts into its batch."""
        commit = commit or self.commit(job, hop)
        digest = commit.digest(DOMAIN)
        terms = JobTerms(session(), job.spec, CLIENT.sign(job.spec.digest(DOMAIN)))
        last = hop == len(RANGES) - 1
        return Leaf(
            commit,
            (signer or SIGNERS[hop]).sign(digest),
            hop_leaf(digest, keccak(b"salt" + digest)),
            terms,
            job.prompt if hop == 0 else None,
            job.emitted if last else None,
        )

    def judge(self, job: LabJob, hop: int, leaf: Leaf | None = None, executor: Executor | None = None) -> HopResult:
        """The audit of one leaf: every check of a verifier that needs neither the chain nor another node."""
        leaf = leaf or self.leaf(job, hop)
        fault = check_leaf(leaf, EPOCH, self.registration(hop), DOMAIN, ESCROW)
        if fault is not None:
            return HopResult(None, fault)
        engine = executor or self.engines[hop]
        return rerun(engine, leaf, job.spec, job.boundaries[hop], job.boundaries[hop + 1], limits=self.limits)


def session() -> SessionKey:
    """The payment channel of every job."""
    return SessionKey(CLIENT.address, CLIENT.address, MODEL_ID, 0, 2**39, 10**9, NODES, (4000, 3000, 3000))


def spec_of(number: int, prompt: Sequence[int], new: int, sampling: SamplingSpec, wire: WireDtype) -> JobSpec:
    """What the client signs: job `number` of its session."""
    return JobSpec(
        session().session_id(*ESCROW),
        number,
        ids_hash(prompt),
        len(prompt),
        new,
        sampling.temperature_milli,
        sampling.top_k,
        sampling.top_p_ppm,
        sampling.seed,
        int(wire),
    )


def decoded(executor: Executor, inputs: npt.NDArray[Any], prompt: int) -> Rows:
    """Prefill of the first `prompt` positions, then one position at a time."""
    sequence = executor.new_sequence()
    parts = [executor.step([StepItem(sequence, inputs[:prompt])])[0]]
    parts += [executor.step([StepItem(sequence, inputs[at : at + 1])])[0] for at in range(prompt, len(inputs))]
    return np.concatenate(parts)


def prefilled(executor: Executor, inputs: npt.NDArray[Any]) -> Rows:
    """All positions at once."""
    return executor.step([StepItem(executor.new_sequence(), inputs)])[0]


def rewritten(job: LabJob, boundary: int, payload: bytes) -> LabJob:
    """`job` with other bytes at one boundary."""
    kept = list(job.boundaries)
    kept[boundary] = payload
    return replace(job, boundaries=tuple(kept))


def cheated(lab: Lab, job: LabJob, hop: int, executor: Executor, *, sampled: bool) -> LabJob:
    """The job as it is when hop `hop` runs `executor`. `sampled`: generate it again, as the tokens are what differs."""
    if sampled:
        return drawn_again(lab, [job], hop, executor)[0]
    return rewritten(job, hop + 1, lab.decode_hop(executor, job, hop))


def drawn_again(lab: Lab, jobs: Sequence[LabJob], hop: int, executor: Executor) -> list[LabJob]:
    """Jobs of one sampling, wire and length generated again, in one batch, while hop `hop` runs `executor`."""
    engines = [*lab.engines[:hop], executor, *lab.engines[hop + 1 :]]
    first = jobs[0]
    spec = SamplingSpec.from_job(first.spec)
    prompts = [job.prompt for job in jobs]
    return lab.generate(
        prompts, len(first.emitted), sampling=spec, wire=first.wire, engines=engines, together=len(jobs) > 1
    )


Progress = Callable[[str], None]
