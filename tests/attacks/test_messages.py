"""Every lie in a message or a commitment meets the check that is there for it."""

from __future__ import annotations

import pytest

from efedllm_bench.attacks.lab import Lab
from efedllm_bench.attacks.lies.messages import MESSAGE_ATTACKS, MessageAttack


@pytest.mark.parametrize("item", MESSAGE_ATTACKS, ids=lambda item: item.name)
def test_the_lie_is_found(lab: Lab, item: MessageAttack) -> None:
    assert item.run(lab, lab.jobs[1]) == item.expected(lab.profile)


def test_names_are_unique() -> None:
    names = [item.name for item in MESSAGE_ATTACKS]
    assert len(set(names)) == len(names)
