"""Options of a request, checked and converted to the fields of a signed job."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from efedllm.commitments.canonical import WireDtype
from efedllm.commitments.messages import NO_EOS, PPM, JobSpec, ids_hash
from efedllm.errors import ConfigError

WIRE = {"f32": WireDtype.F32, "bf16": WireDtype.BF16}
MAX_TEMPERATURE = 100.0


@dataclass(frozen=True)
class RouteOptions:
    """Which nodes may work, and what they may cost."""

    nodes: tuple[str, ...] = ()  # addresses in layer order, or their first digits; empty chooses the cheapest route
    avoid: tuple[str, ...] = ()
    max_price: int | None = None  # gwei of EFED per 1000 tokens for the whole route; None accepts the best route's
    deposit: int | None = None  # wei for a new session; None takes the cost of several such jobs
    fresh_session: bool = False
    explore: float | None = None  # share of jobs that try a node without trust, 0 to 1; None takes the ClientConfig's


@dataclass(frozen=True)
class GenerateOptions:
    """Options of one generation. Everything that decides the tokens is fixed before the run."""

    max_tokens: int = 64
    temperature: float = 0.0  # 0 is greedy
    top_k: int = 0  # 0 is off
    top_p: float = 1.0  # 1 is off
    seed: str | None = None  # decimal number or 0x hex of up to 32 bytes; None draws one
    wire: str = "f32"  # number format between the nodes: f32 or bf16
    stop_at_eos: bool = True
    min_quality: float | None = None  # of the model, see `efedllm_client.routes.quality`; None accepts any
    route: RouteOptions = RouteOptions()


@dataclass(frozen=True)
class Sampling:
    """The part of a job that is the same on every route."""

    temperature_milli: int
    top_k: int
    top_p_ppm: int
    seed: bytes
    wire: WireDtype
    eos_token: int

    def spec(self, session_id: bytes, job_seq: int, prompt: list[int], max_new_tokens: int) -> JobSpec:
        return JobSpec(
            session_id=session_id,
            job_seq=job_seq,
            prompt_hash=ids_hash(prompt),
            prompt_tokens=len(prompt),
            max_new_tokens=max_new_tokens,
            temperature_milli=self.temperature_milli,
            top_k=self.top_k,
            top_p_ppm=self.top_p_ppm,
            seed=self.seed,
            wire_dtype=int(self.wire),
            eos_token=self.eos_token,
        )


def sampling_of(options: GenerateOptions, eos: int | None, *, exact: bool = False) -> Sampling:
    """The sampling of a job; `exact`: of an exact model, which is not rounded. Raises ConfigError "bad-option"."""
    if options.max_tokens < 1:
        raise _bad("--max-tokens must be at least 1.")
    if not 0.0 <= options.temperature <= MAX_TEMPERATURE:
        raise _bad(f"--temperature must be between 0 and {MAX_TEMPERATURE:.0f}.")
    temperature = round(options.temperature * 1000)
    if options.temperature > 0 and temperature == 0:
        raise _bad("--temperature must be 0 (greedy) or at least 0.001.")
    if not 0 <= options.top_k < 1 << 32:
        raise _bad("--top-k must be 0 (off) or more.")
    top_p = round(options.top_p * PPM) if 0.0 < options.top_p <= 1.0 else 0
    if top_p < 1:
        raise _bad("--top-p must be above 0 and at most 1 (off).")
    if options.wire not in WIRE:
        raise _bad(f"--wire must be one of {', '.join(WIRE)}.")
    if exact and WIRE[options.wire] is not WireDtype.F32:
        raise _bad(f"--wire {options.wire} would change the results of this model, which is exact.")
    return Sampling(
        temperature_milli=temperature,
        top_k=options.top_k,
        top_p_ppm=top_p,
        seed=parse_seed(options.seed),
        wire=WIRE[options.wire],
        eos_token=eos if options.stop_at_eos and eos is not None else NO_EOS,
    )


def parse_seed(text: str | None) -> bytes:
    """32 bytes: drawn when `text` is None, else the number in it, big endian. Raises ConfigError "bad-option"."""
    if text is None:
        return secrets.token_bytes(32)
    try:
        return int(text, 0).to_bytes(32, "big")
    except (ValueError, OverflowError):
        raise _bad("--seed must be a number, decimal or 0x hex, below 2^256.") from None


def _bad(message: str) -> ConfigError:
    return ConfigError("bad-option", message, "See `efedllm generate --help`.")
