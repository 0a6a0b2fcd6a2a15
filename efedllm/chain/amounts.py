"""Amounts people type and read, against integer wei (18 decimals). No floating point anywhere."""

from __future__ import annotations

import re

from efedllm.errors import ConfigError

DECIMALS = 18
WEI: int = 10**DECIMALS
GWEI = 10**9

_AMOUNT = re.compile(r"^(\d+)(?:\.(\d{1,18}))?$")


def parse_amount(text: str) -> int:
    """Wei of a decimal amount such as "1.5" (EFED or ETH). Raises ConfigError "bad-amount"."""
    match = _AMOUNT.match(text.strip().replace("_", ""))
    if match is None:
        raise ConfigError(
            "bad-amount",
            f"{text!r} is not an amount.",
            "Write a positive decimal number with at most 18 decimals, for example 1.5",
        )
    whole, fraction = match.group(1), match.group(2) or ""
    return int(whole) * WEI + int(fraction.ljust(DECIMALS, "0"))


def format_amount(wei: int, unit: str = "EFED") -> str:
    """Exact decimal text of an amount, without trailing zeros: 1500000000000000000 -> "1.5 EFED"."""
    sign, wei = ("-", -wei) if wei < 0 else ("", wei)
    whole, fraction = divmod(wei, WEI)
    tail = f"{fraction:018d}".rstrip("0")
    number = f"{sign}{whole}.{tail}" if tail else f"{sign}{whole}"
    return f"{number} {unit}" if unit else number


def cost_of_tokens(tokens: int, price_per_ktok: int) -> int:
    """Wei for `tokens` at `price_per_ktok` gwei of EFED per 1000 tokens, rounded up as the escrow does."""
    return -(-tokens * price_per_ktok * GWEI // 1000)
