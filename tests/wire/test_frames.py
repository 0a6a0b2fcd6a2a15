"""Frames and their bodies: what is written is read back, everything else is a ProtocolError."""

from __future__ import annotations

import dataclasses
import json
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efedllm.commitments.canonical import WireDtype, itemsize
from efedllm.commitments.messages import RouteHop
from efedllm.errors import ChainError, ProtocolError
from efedllm.wire.body import parse_json
from efedllm.wire.frames import (
    ACK_BODY_BYTES,
    ACT_BODY_BYTES,
    LIMITS,
    MAX_FRAME,
    MAX_JSON,
    Frame,
    FrameType,
    decode,
    encode,
)
from efedllm.wire.messages import (
    AckMsg,
    ActMsg,
    AnyMessage,
    CancelMsg,
    CommitMsg,
    ErrorMsg,
    FinishMsg,
    HelloMsg,
    OpenedMsg,
    OpenJobMsg,
    PayMsg,
    StartMsg,
    VoucherMsg,
    WelcomeMsg,
    parse,
)
from tests.commitments.commitment_strategies import (
    address,
    h32,
    hop_commits,
    job_specs,
    session_keys,
    sig65,
    uint,
    vouchers,
)

CODES = {"bad-frame", "bad-message", "bad-length", "bad-dtype", "oversized"}
HEADER = struct.Struct("<4sBBHII")
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@st.composite
def open_jobs(draw: st.DrawFn) -> OpenJobMsg:
    count = draw(st.integers(1, 4))
    hop = draw(st.integers(0, count - 1))
    prompt = draw(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=20)) if hop == 0 else None
    spec = draw(job_specs)
    if prompt is not None:
        spec = dataclasses.replace(spec, prompt_tokens=len(prompt))
    paid = draw(st.booleans())
    route = [RouteHop(draw(address), draw(address), "http://127.0.0.1:1", i, i + 1) for i in range(count)]
    return OpenJobMsg(
        draw(session_keys()),
        spec,
        draw(sig65),
        draw(vouchers) if paid else None,
        draw(sig65) if paid else None,
        hop,
        tuple(route),
        None if prompt is None else tuple(prompt),
    )


@st.composite
def acts(draw: st.DrawFn) -> ActMsg:
    boundary = draw(st.integers(0, 3))
    dtype = WireDtype.I32 if boundary == 0 else draw(st.sampled_from([WireDtype.F32, WireDtype.BF16]))
    dim = 1 if boundary == 0 else draw(st.integers(1, 5))
    n = draw(st.integers(1, 4))
    size = n * dim * itemsize(dtype)
    payload = draw(st.binary(min_size=size, max_size=size))
    return ActMsg(draw(h32), boundary, draw(uint(32)), n, dtype, dim, draw(h32), draw(sig65), payload)


hellos = st.builds(
    HelloMsg, chain_id=uint(256), role=st.just("client"), address=st.none() | address, challenge=h32, protocol=uint(16)
) | st.builds(HelloMsg, chain_id=uint(256), role=st.just("node"), address=address, challenge=h32)
any_message: st.SearchStrategy[Any] = st.one_of(
    hellos,
    st.builds(WelcomeMsg, chain_id=uint(256), node=address, signer=address, signature=sig65),
    open_jobs(),
    st.builds(OpenedMsg, job_id=h32, hop=uint(16), next_ready=st.booleans()),
    st.builds(StartMsg, job_id=h32),
    acts(),
    st.builds(AckMsg, job_id=h32, boundary=uint(16), from_pos=uint(32), n=uint(32), signature=sig65),
    st.builds(VoucherMsg, voucher=vouchers, signature=sig65),
    st.builds(PayMsg, job_id=h32, due=uint(128), paid=uint(128), tokens=uint(64)),
    st.builds(FinishMsg, job_id=h32, reason=st.sampled_from(["eos", "length", "cancelled"]), tokens=uint(32)),
    st.builds(CommitMsg, commit=hop_commits(), signature=sig65),
    st.builds(CancelMsg, job_id=h32, reason=text),
    st.builds(ErrorMsg, code=text, message=text, hint=text, job_id=st.none() | h32),
)


@settings(max_examples=300)
@given(any_message)
def test_every_message_survives_the_wire(message: AnyMessage) -> None:
    frame = message.to_frame()
    data = encode(frame)
    assert frame.size == len(data)
    assert decode(data) == frame
    assert parse(decode(data)) == message


def attempt(data: bytes) -> AnyMessage | None:
    """What arrives as a message; None when refused with one of the protocol's codes. Any other exception is a
    failure.
    """
    try:
        return parse(decode(data))
    except ProtocolError as error:
        code = error.code
    assert code in CODES
    return None


@settings(max_examples=500)
@given(st.binary(max_size=300))
def test_random_bytes_are_refused(data: bytes) -> None:
    assert attempt(data) is None


@settings(max_examples=500)
@given(st.sampled_from(list(FrameType)), st.binary(max_size=250), st.binary(max_size=40))
def test_random_bodies_never_crash(kind: FrameType, body: bytes, payload: bytes) -> None:
    attempt(HEADER.pack(b"EFL1", kind, 0, 0, len(body), len(payload)) + body + payload)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just("0x" + "00" * 32),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=400)
@given(any_message.filter(lambda m: not isinstance(m, ActMsg | AckMsg)), st.data())
def test_changed_json_never_crashes(message: AnyMessage, data: st.DataObject) -> None:
    frame = message.to_frame()
    document = json.loads(frame.body)
    document[data.draw(st.sampled_from(sorted(document)))] = data.draw(json_values)
    attempt(encode(Frame(frame.type, json.dumps(document).encode(), frame.payload)))


@settings(max_examples=200)
@given(any_message, st.data())
def test_truncated_and_extended_frames_are_refused(message: AnyMessage, data: st.DataObject) -> None:
    whole = encode(message.to_frame())
    for changed in (whole[: data.draw(st.integers(0, len(whole) - 1))], whole + b"\0"):
        with pytest.raises(ProtocolError) as caught:
            decode(changed)
        assert caught.value.code == "bad-frame"


@settings(max_examples=200)
@given(any_message, st.data())
def test_changed_bytes_are_refused_or_another_wellformed_message(message: AnyMessage, data: st.DataObject) -> None:
    whole = bytearray(encode(message.to_frame()))
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    parsed = attempt(bytes(whole))
    if parsed is not None:
        assert parse(parsed.to_frame()) == parsed


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ((b"EFL2", 5, 0, 0, 2, 0), "bad-frame"),
        ((b"EFL1", 0, 0, 0, 2, 0), "bad-frame"),
        ((b"EFL1", 14, 0, 0, 2, 0), "bad-frame"),
        ((b"EFL1", 5, 1, 0, 2, 0), "bad-frame"),
        ((b"EFL1", 5, 0, 1, 2, 0), "bad-frame"),
        ((b"EFL1", 5, 0, 0, 1, 0), "bad-frame"),
        ((b"EFL1", 5, 0, 0, 2, 1), "oversized"),
        ((b"EFL1", 5, 0, 0, MAX_JSON + 1, 0), "oversized"),
        ((b"EFL1", 5, 0, 0, 0xFFFFFFFF, 0xFFFFFFFF), "oversized"),
        ((b"EFL1", FrameType.ACT, 0, 0, ACT_BODY_BYTES, MAX_FRAME), "oversized"),
        ((b"EFL1", FrameType.ACT, 0, 0, ACT_BODY_BYTES - 1, 3), "bad-frame"),
        ((b"EFL1", FrameType.ACK, 0, 0, ACK_BODY_BYTES + 1, 0), "oversized"),
    ],
)
def test_headers_are_judged_before_anything_is_copied(header: tuple[Any, ...], code: str) -> None:
    """The announced bytes are not even there: the sizes alone decide."""
    with pytest.raises(ProtocolError) as caught:
        decode(HEADER.pack(*header) + b"{}")
    assert caught.value.code == code


def test_every_type_stays_within_the_whole_frame() -> None:
    assert set(LIMITS) == set(FrameType)
    assert max(HEADER.size + limits.max_body + limits.max_payload for limits in LIMITS.values()) == MAX_FRAME


def test_the_largest_frame_and_one_byte_more() -> None:
    room = LIMITS[FrameType.ACT].max_payload
    largest = Frame(FrameType.ACT, bytes(ACT_BODY_BYTES), bytes(room))
    data = encode(largest)
    assert len(data) == MAX_FRAME
    assert decode(data) == largest
    with pytest.raises(ProtocolError) as caught:
        encode(Frame(FrameType.ACT, bytes(ACT_BODY_BYTES), bytes(room + 1)))
    assert caught.value.code == "oversized"
    with pytest.raises(ProtocolError) as caught:
        decode(bytes(MAX_FRAME + 1))
    assert caught.value.code == "oversized"


@pytest.mark.parametrize(
    "body",
    [
        b'{"job_id":NaN}',
        b'{"job_id":"0x' + b"00" * 32 + b'","job_id":"0x' + b"00" * 32 + b'"}',
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b"[" * 100 + b'"' + b'\\"' * 100_000,
        b'{"job_id":' * 20_000 + b"1" + b"}" * 20_000,
        b'{"job_id":' + b"9" * 5000 + b"}",
        b'{"job_id":"' + b"0x" + b"00" * 32 + b'","x":1}',
        b'{"job_id":"0x' + b"00" * 31 + b'"}',
        b'{"job_id":"\\ud800"}',
    ],
)
def test_bodies_nobody_may_send(body: bytes) -> None:
    assert attempt(encode(Frame(FrameType.START, body))) is None


def test_brackets_inside_text_are_no_depth() -> None:
    message = ErrorMsg("code", "[{" * 200, '\\"[' * 100)
    assert parse(message.to_frame()) == message


@pytest.mark.parametrize(("depth", "fine"), [(32, True), (33, False)])
def test_the_depth_of_json_is_bounded(depth: int, fine: bool) -> None:
    data = b"[" * depth + b"]" * depth
    if fine:
        assert parse_json(data) is not None
    else:
        with pytest.raises(ProtocolError) as caught:
            parse_json(data)
        assert caught.value.code == "bad-json"


def test_a_message_is_read_only_from_its_own_frame_type() -> None:
    frame = StartMsg(bytes(32)).to_frame()
    with pytest.raises(ProtocolError) as caught:
        OpenedMsg.from_frame(frame)
    assert caught.value.code == "bad-frame"
    with pytest.raises(ProtocolError):
        ActMsg.from_frame(frame)


@given(acts(), st.data())
def test_act_shapes_must_fit_the_payload(act: ActMsg, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["n", "dim", "payload", "boundary"]))
    change: dict[str, Any] = {
        "n": act.n + data.draw(st.integers(1, 3)),
        "dim": act.dim + data.draw(st.integers(1, 3)),
        "payload": act.payload + b"\0",
        "boundary": 1 if act.boundary == 0 else 0,
    }
    with pytest.raises(ProtocolError):
        dataclasses.replace(act, **{name: change[name]})
    with pytest.raises(ProtocolError):
        dataclasses.replace(act, n=0, payload=b"")


@given(acts(), h32)
def test_the_envelope_is_what_the_frame_says(act: ActMsg, chunk: bytes) -> None:
    envelope = act.envelope(chunk)
    assert (envelope.job_id, envelope.boundary, envelope.from_pos) == (act.job_id, act.boundary, act.from_pos)
    assert (envelope.n, envelope.chunk_hash, envelope.prev) == (act.n, chunk, act.prev)


@settings(max_examples=30)
@given(open_jobs())
def test_what_hop_0_and_only_hop_0_needs(job: OpenJobMsg) -> None:
    wrong: dict[str, Any] = {"prompt": None} if job.hop == 0 else {"prompt": (1,) * min(job.job_spec.prompt_tokens, 9)}
    with pytest.raises(ProtocolError):
        dataclasses.replace(job, **wrong)
    with pytest.raises(ProtocolError):
        dataclasses.replace(job, hop=len(job.route))
    with pytest.raises(ProtocolError):
        dataclasses.replace(job, voucher_signature=None if job.voucher else bytes(65))
    if job.prompt is not None:
        with pytest.raises(ProtocolError):
            dataclasses.replace(job, prompt=(*job.prompt, 1))


@pytest.mark.parametrize("payload", [b"abc", b"\xff\xff\xff\xff"])
def test_prompts_that_are_no_ids(payload: bytes) -> None:
    from hypothesis import find

    job = find(open_jobs(), lambda j: j.hop == 0)
    with pytest.raises(ProtocolError):
        OpenJobMsg.from_frame(dataclasses.replace(job.to_frame(), payload=payload))


def test_errors_travel_and_are_cut_to_the_limits() -> None:
    message = ErrorMsg.of(ChainError("code", "m" * 5000, "h\ud800"), bytes(32))
    parsed = parse(decode(encode(message.to_frame())))
    assert isinstance(parsed, ErrorMsg)
    error = parsed.to_error()
    assert (error.code, len(error.message), error.hint) == ("code", 1000, "h?")
    with pytest.raises(ProtocolError):
        ErrorMsg("c" * 65, "m")
    with pytest.raises(ProtocolError):
        CancelMsg(bytes(32), "r" * 1001)


def test_a_node_must_say_who_it_is() -> None:
    with pytest.raises(ProtocolError):
        HelloMsg(1, "node", None, bytes(32))
    with pytest.raises(ProtocolError):
        HelloMsg(1, "verifier", None, bytes(32))  # type: ignore[arg-type]
