"""What the schemes cannot see, and what nobody can know: the lot, models that invite accusations."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from efedllm_bench.attacks import audit_odds as games
from efedllm_bench.attacks import economy
from efedllm_bench.attacks.lab import Lab, prompts
from efedllm_bench.attacks.other_schemes import all_scores
from efedllm_bench.attacks.search import order_sensitive_models as adversarial
from efedllm_bench.attacks.statistics import (
    auc,
    beyond_honest,
    expected_jobs,
    roc,
    rule_of_three,
    simulated_jobs,
    wilson,
)
from efedllm_deploy.profile import Profile


def test_nothing_tells_an_audit_from_the_rest() -> None:
    rate = 50_000
    for found in (games.audit_aware(rate, 4000), games.grind_salt(rate, 3000, 1 << 16)):
        assert found.low <= rate / 1e6 <= found.high


def test_grinding_posts_the_leaves_that_the_guess_likes_best() -> None:
    """With every salt posted nothing was chosen; with few, the guess would audit the same ones."""
    assert games.grind_salt(50_000, 500, 500) == games.grind_salt(50_000, 1000, 500)
    assert games.grind_salt(50_000, 500, 500).trials == 500


def test_who_chooses_between_two_seeds_escapes_some_audits() -> None:
    """The known weakness of seeds that somebody can influence: docs/protocol.md, known limits."""
    found = games.last_revealer(50_000, 4000)
    assert 0.005 < found.share < 0.05


@pytest.mark.parametrize(("rate", "share"), [(50_000, 1.0), (500_000, 0.1)])
def test_jobs_until_caught_follow_the_formula(rate: int, share: float) -> None:
    simulated = simulated_jobs(rate, 1.0, share, 400, b"test")
    expected = expected_jobs(rate / 1e6, 1.0, share)
    # Four standard errors of the mean of 400 geometric waits.
    assert abs(simulated - expected) < 4 * expected / math.sqrt(400)


def test_what_is_never_detected_is_never_caught() -> None:
    assert math.isinf(expected_jobs(0.05, 0.0))
    assert games.padding(1) == 0.1
    assert games.padding(16) == 1.0


def test_a_model_made_to_be_accused_spreads_wide_and_keeps_its_exact_bits(float_lab: Lab, tmp_path: Path) -> None:
    published = adversarial.publish_backdoored(tmp_path)
    (job,) = float_lab.generate(prompts(1, 32), 12)
    wide = Lab("float", published["float"], tmp_path)
    (odd,) = wide.generate(prompts(1, 32), 12)
    assert adversarial.spread(wide, odd) > max(1.0, 8 * adversarial.spread(float_lab, job))
    # Before it accuses, a verifier sees that its own recomputation strays as far.
    assert adversarial.honest_pass(wide, odd)
    exact = Lab("exact", published["exact"], tmp_path)
    (same,) = exact.generate(prompts(1, 32), 12)
    assert adversarial.same_bits(exact, same)


def test_intervals_and_curves() -> None:
    half = wilson(5, 10)
    assert (round(half.low, 4), round(half.high, 4)) == (0.2366, 0.7634)
    assert wilson(0, 10).low == 0.0
    assert wilson(10, 10).high == 1.0
    assert rule_of_three(300) == 0.01
    honest, attack = np.array([0.0, 1.0, 2.0, 2.0]), np.array([2.0, 3.0])
    # Pairs: three below and one equal twice for 2.0, all below for 3.0.
    assert auc(honest, attack) == pytest.approx((2 + 2 * 0.5 + 4) / 8)
    assert beyond_honest(honest, attack) == 0.5
    false, true = roc(honest, attack)
    assert (false[0], true[0], false[-1], true[-1]) == (0.0, 0.0, 1.0, 1.0)
    assert false == sorted(false)
    assert true == sorted(true)


def test_a_sketch_of_the_largest_values_does_not_see_the_rest() -> None:
    generator = np.random.default_rng(4)
    x = generator.standard_normal((32, 256)).astype(np.float32)
    ours = x + generator.standard_normal((32, 256)).astype(np.float32)
    top = np.zeros(ours.size, bool)
    top[np.argsort(-np.abs(ours).ravel())[:128]] = True
    sent = np.where(top.reshape(ours.shape), ours, ours * np.float32(0.97))
    found = all_scores(sent, ours, x)
    assert found["largest_values"].max() == 0
    assert found["statistic"].min() > 10
    assert found["projection"].min() > 10
    same = all_scores(ours, ours, x)
    assert {name: float(values.max()) for name, values in same.items()} == dict.fromkeys(same, 0.0)


def test_gains_and_losses_are_in_tokens() -> None:
    assert (economy.tokens_saved(0.275), economy.tokens_saved(-0.8)) == (275, 0)
    loss = economy.Losses.of(Profile.load("testnet"))
    # 100 EFED a layer, at 1 EFED for 1,000 tokens.
    assert (loss.layers, loss.stake_tokens, loss.first, loss.repeat) == (3, 300_000, 60_000, 300_000)
    assert economy.at_stake(wilson(9, 18), {"testnet": loss}) == {"testnet": {"first": 30_000, "repeat": 150_000}}
    assert economy.at_stake(wilson(0, 18), {"testnet": loss}) == {"testnet": {"first": 0, "repeat": 0}}
    after = economy.detection_after(wilson(5, 10))
    assert [after[count][1] for count in ("1", "2", "5")] == [0.5, 0.75, 0.9688]
    assert after["20"][0] < after["20"][1] <= after["20"][2] == 1.0
