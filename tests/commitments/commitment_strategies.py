"""Hypothesis strategies for the signed messages."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import strategies as st

from efedllm.commitments.hashing import as_address
from efedllm.commitments.messages import Envelope, Hello, HopCommit, JobSpec, RouteHop, SessionKey, Voucher

h32 = st.binary(min_size=32, max_size=32)
sig65 = st.binary(min_size=65, max_size=65)
address = st.binary(min_size=20, max_size=20).map(lambda raw: as_address("0x" + raw.hex()))


def uint(bits: int, low: int = 0) -> st.SearchStrategy[int]:
    return st.integers(low, (1 << bits) - 1)


wire_dtype = st.sampled_from([1, 2])

job_specs = st.builds(
    JobSpec,
    session_id=h32,
    job_seq=uint(64),
    prompt_hash=h32,
    prompt_tokens=uint(32, 1),
    max_new_tokens=uint(32, 1),
    temperature_milli=uint(32),
    top_k=uint(32),
    top_p_ppm=st.integers(1, 1_000_000),
    seed=h32,
    wire_dtype=wire_dtype,
    eos_token=uint(32),
)


@st.composite
def hop_commits(draw: st.DrawFn) -> HopCommit:
    lo = draw(st.integers(0, 0xFFFE))
    return HopCommit(
        job_id=draw(h32),
        spec_hash=draw(h32),
        hop=draw(uint(16)),
        lo=lo,
        hi=draw(st.integers(lo + 1, 0xFFFF)),
        profile=draw(st.integers(0, 1)),
        wire_dtype=draw(wire_dtype),
        tokens=draw(uint(32)),
        model_id=draw(h32),
        shard_root=draw(h32),
        in_root=draw(h32),
        out_root=draw(h32),
        tokens_hash=draw(h32),
        aux_root=draw(h32),
        prev_commit=draw(h32),
        epoch=draw(uint(64)),
    )


envelopes = st.builds(
    Envelope, job_id=h32, boundary=uint(16), from_pos=uint(32), n=uint(32, 1), chunk_hash=h32, prev=h32
)
hellos = st.builds(Hello, node=address, challenge=h32)
vouchers = st.builds(Voucher, session_id=h32, cumulative=uint(128), tokens=uint(64), receipts_root=h32)


@st.composite
def session_keys(draw: st.DrawFn) -> SessionKey:
    nodes = draw(st.lists(address, min_size=1, max_size=8, unique=True))
    cuts = sorted(draw(st.lists(st.integers(0, 10_000), min_size=len(nodes) - 1, max_size=len(nodes) - 1)))
    edges = [0, *cuts, 10_000]
    return SessionKey(
        client=draw(address),
        signer=draw(address),
        model_id=draw(h32),
        nonce=draw(uint(64)),
        expiry=draw(uint(40)),
        max_price_per_ktok=draw(uint(64)),
        nodes=tuple(nodes),
        shares=tuple(b - a for a, b in pairwise(edges)),
    )


@st.composite
def route_hops(draw: st.DrawFn) -> RouteHop:
    lo = draw(st.integers(0, 0xFFFE))
    return RouteHop(
        node=draw(address),
        signer=draw(address),
        endpoint=draw(st.sampled_from(["http://127.0.0.1:8000", "https://node.example/base", "ws://[::1]:1"])),
        lo=lo,
        hi=draw(st.integers(lo + 1, 0xFFFF)),
        shard_root=draw(st.none() | h32),
    )
