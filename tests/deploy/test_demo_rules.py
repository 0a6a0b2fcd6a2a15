"""What the demo asks of a network that an earlier demo left behind."""

from __future__ import annotations

from dataclasses import replace

import pytest

from efedllm.chain.types import NodeInfo
from efedllm_deploy.demo import ACTIVE, EXCLUDED, came_out_well, exclusions_end

THETA, PROBATION = 300_000, 1
FRESH = NodeInfo(
    address="0x" + "11" * 20,
    signer="0x" + "22" * 20,
    lo=0,
    hi=4,
    price_per_ktok=1,
    status=1,
    model_id=bytes(32),
    shard_root=bytes(32),
    endpoint="http://node",
    stake_active=1,
    stake_unbonding=0,
    trust_ppm=0,
    standing=PROBATION,
    jailed_until=0,
    offences=0,
    owed=0,
)
CHEATED = replace(FRESH, trust_ppm=5_000, jailed_until=30, offences=1)


def test_the_demo_goes_on_when_the_last_excluded_node_may_work() -> None:
    excluded = replace(CHEATED, standing=EXCLUDED)
    assert exclusions_end([FRESH, CHEATED]) is None
    assert exclusions_end([FRESH, excluded, replace(excluded, jailed_until=41), CHEATED]) == 41


@pytest.mark.parametrize(
    ("before", "after", "failed", "well"),
    [
        (FRESH, replace(FRESH, trust_ppm=THETA, standing=ACTIVE), False, True),
        (FRESH, replace(FRESH, trust_ppm=THETA - 1), False, False),
        (FRESH, replace(FRESH, trust_ppm=THETA, standing=ACTIVE), True, False),
        (CHEATED, replace(CHEATED, trust_ppm=5_001), False, True),
        (CHEATED, CHEATED, False, False),
        (CHEATED, replace(CHEATED, trust_ppm=5_001), True, False),
        (CHEATED, replace(CHEATED, trust_ppm=5_001, standing=EXCLUDED), False, False),
    ],
)
def test_an_audit_went_well(before: NodeInfo, after: NodeInfo, failed: bool, well: bool) -> None:
    assert came_out_well(before, after, failed, THETA) is well
