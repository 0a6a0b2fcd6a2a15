"""Options become the fields of a job, and payments are split between the hops."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efedllm.commitments.canonical import WireDtype
from efedllm.commitments.messages import NO_EOS, ids_hash
from efedllm.errors import ConfigError
from efedllm.sampling.float import SamplingSpec
from efedllm_client.jobs.options import GenerateOptions, parse_seed, sampling_of
from efedllm_client.payments.rules import split_shares


def test_options_become_the_job() -> None:
    options = GenerateOptions(max_tokens=5, temperature=0.7, top_k=40, top_p=0.9, seed="7", wire="bf16")
    spec = sampling_of(options, eos=2).spec(bytes(32), 3, [1, 2], 5)
    assert (spec.temperature_milli, spec.top_k, spec.top_p_ppm, spec.eos_token) == (700, 40, 900_000, 2)
    assert (spec.seed, spec.wire_dtype) == ((7).to_bytes(32, "big"), WireDtype.BF16)
    assert (spec.prompt_hash, spec.prompt_tokens, spec.max_new_tokens, spec.job_seq) == (ids_hash([1, 2]), 2, 5, 3)
    assert SamplingSpec.from_job(spec).greedy is False


def test_an_exact_model_is_not_rounded_on_the_wire() -> None:
    assert sampling_of(GenerateOptions(), eos=None, exact=True).wire is WireDtype.F32
    with pytest.raises(ConfigError) as caught:
        sampling_of(GenerateOptions(wire="bf16"), eos=None, exact=True)
    assert caught.value.code == "bad-option"


def test_no_end_token() -> None:
    assert sampling_of(GenerateOptions(stop_at_eos=False), eos=2).eos_token == NO_EOS
    assert sampling_of(GenerateOptions(), eos=None).eos_token == NO_EOS


@pytest.mark.parametrize(
    "bad",
    [
        {"max_tokens": 0},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": 0.0001},
        {"temperature": 1000.0},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"top_p": float("nan")},
        {"wire": "f16"},
        {"seed": "seven"},
        {"seed": "-1"},
        {"seed": "0x" + "ff" * 33},
    ],
)
def test_bad_options_are_refused_by_name(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        sampling_of(GenerateOptions(**bad), eos=None)
    assert caught.value.code == "bad-option"
    assert f"--{next(iter(bad)).replace('_', '-')}" in caught.value.message


def test_seeds() -> None:
    assert parse_seed("0xff") == parse_seed("255")
    assert parse_seed(None) != parse_seed(None)


@given(st.lists(st.tuples(st.integers(0, 2**47), st.integers(1, 200)), min_size=1, max_size=64))
def test_shares_sum_to_all_and_follow_the_prices(hops: list[tuple[int, int]]) -> None:
    shares = split_shares(hops)
    assert sum(shares) == 10_000
    assert all(share >= 0 for share in shares)
    total = sum(price for price, _ in hops)
    if total:
        # Within one basis point of the exact part, as nodes require.
        assert all(abs(share * total - price * 10_000) < total for share, (price, _) in zip(shares, hops, strict=True))


def test_a_free_route_is_shared_by_layers() -> None:
    assert split_shares([(0, 1), (0, 3)]) == (2_500, 7_500)
    assert split_shares([(1, 1), (1, 1), (1, 1)]) == (3_334, 3_333, 3_333)
