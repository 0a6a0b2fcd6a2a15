"""The strategies of a cheating node, each with its number in the attack list and what an audit must make of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from efedllm.engine.cache import KVCache
from efedllm.engine.exact.cache import ExactCache
from efedllm.engine.exact.shard import ExactShardEngine
from efedllm.engine.protocol import Executor, Sequence
from efedllm.engine.shard import ShardEngine
from efedllm.models.families import read_config
from efedllm_bench.cheats import outputs as ex
from efedllm_bench.cheats import weights as wt

NumericProfile = Literal["exact", "float"]


class ExpectedVerdict(StrEnum):
    """What one audit that covers the cheat must say."""

    SEVERE = "severe"  # slashable
    CAUGHT = "caught"  # fails: trust is lost, stake only where it is severe
    BELOW = "below tolerance"  # passes: the float profile does not see it
    NONE = "not applicable"


@dataclass(frozen=True)
class Shop:
    """What a cheating node has at hand. `stale`: rows it sent in an earlier job, by layer range."""

    published: Path
    work: Path
    profile: NumericProfile
    stale: Mapping[tuple[int, int], npt.NDArray[np.float32]] = field(default_factory=dict)

    def load(self, lo: int, hi: int, directory: Path | None = None) -> Executor:
        """The engine of the profile over layers [lo, hi)."""
        kind = ExactShardEngine if self.profile == "exact" else ShardEngine
        return kind.load(directory or self.published, lo, hi, threads=1)

    def falsified(self, name: str, edit: wt.Edit, executor: Executor) -> Executor:
        """The float engine over falsified weights, in either profile: no cheat has to compute exactly."""
        out = self.work / self.profile / f"{name}-{executor.lo}-{executor.hi}"
        if not out.exists():
            wt.falsify(self.published, out, edit, executor.lo, executor.hi)
        return ShardEngine.load(out, executor.lo, executor.hi, threads=1)

    def integers(self, name: str, edit: wt.IntegerEdit, executor: Executor) -> Executor:
        """The exact engine over other integers."""
        out = self.work / "integers" / f"{name}-{executor.lo}-{executor.hi}"
        if not out.exists():
            wt.falsify_integers(self.published, out, edit, executor.lo, executor.hi)
        return ExactShardEngine.load(out, executor.lo, executor.hi, threads=1)

    def cache(self, executor: Executor, kinds: tuple[type[KVCache], type[ExactCache]]) -> Callable[[], Sequence]:
        """Makes caches of another kind for `executor`."""
        config = read_config(self.published)
        heads = int(config.num_key_value_heads)
        dim = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
        layers = executor.hi - executor.lo
        if self.profile == "exact":
            return lambda: kinds[1](layers, heads, dim)
        return lambda: kinds[0](layers, heads, dim)


Arm = Callable[[Shop, Executor], Executor]


@dataclass(frozen=True)
class Attack:
    """A cheat of one node, plugged in as its executor. `where`: hops that can do it; `number`: in the attack list."""

    number: int
    name: str
    changes: str
    arm: Arm
    exact: ExpectedVerdict = ExpectedVerdict.SEVERE
    float_: ExpectedVerdict = ExpectedVerdict.SEVERE
    where: Literal["any", "first", "later", "last"] = "any"
    sampled: bool = False  # shows only where tokens are drawn, not where the likeliest is taken
    timed: frozenset[NumericProfile] = frozenset()  # where its seconds are those that such a node would take

    @property
    def saves(self) -> bool:
        """Whether it is done to compute or store less."""
        return self.number in (1, 2, 3, 4, 5, 12)

    def expected(self, profile: NumericProfile) -> ExpectedVerdict:
        return self.exact if profile == "exact" else self.float_


def _weights(
    number: int,
    name: str,
    changes: str,
    edit: wt.Edit,
    float_: ExpectedVerdict = ExpectedVerdict.SEVERE,
    timed: frozenset[NumericProfile] = frozenset(),
) -> Attack:
    return Attack(number, name, changes, lambda shop, e: shop.falsified(name, edit, e), float_=float_, timed=timed)


def _integers(number: int, name: str, changes: str, edit: wt.IntegerEdit) -> Attack:
    return Attack(number, name, changes, lambda shop, e: shop.integers(name, edit, e), float_=ExpectedVerdict.NONE)


def _output(
    number: int, name: str, changes: str, edit: ex.RowEdit, float_: ExpectedVerdict = ExpectedVerdict.SEVERE
) -> Attack:
    return Attack(number, name, changes, lambda _shop, e: ex.EditedOutput(e, edit), float_=float_)


def _tokens(name: str, changes: str, rule: Callable[[ex.Rows], ex.Rows]) -> Attack:
    return Attack(10, name, changes, lambda _shop, e: ex.ChosenTokens(e, rule), where="last", sampled=True)


def _middle(executor: Executor) -> int:
    return (executor.lo + executor.hi) // 2


def _skip_layer(shop: Shop, e: Executor) -> Executor:
    cut = max(_middle(e), e.lo + 1)
    ranges = [(e.lo, cut), (cut + 1, e.hi)]
    return ex.Chained(e, [shop.load(*part) for part in ranges if part[0] < part[1]])


def _dup_layer(shop: Shop, e: Executor) -> Executor:
    cut = _middle(e) + 1
    return ex.Chained(e, [shop.load(e.lo, cut), shop.load(cut - 1, e.hi)])


def _wrong_shard(shop: Shop, e: Executor) -> Executor:
    shift = 1 if e.lo > 1 else -1
    return ex.Chained(e, [shop.load(e.lo - shift, e.hi - shift)])


def _window(shop: Shop, e: Executor) -> Executor:
    out = shop.work / shop.profile / "window"
    if not out.exists():
        changes = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 32}
        wt.with_config(shop.published, out, **changes)
    return shop.load(e.lo, e.hi, out)


def _bf16(shop: Shop, e: Executor) -> Executor:
    return ex.Bfloat16(shop.falsified("unchanged", lambda matrix: matrix, e))


def _stale_job(shop: Shop, e: Executor) -> Executor:
    return ex.Remembered(e, shop.stale[e.lo, e.hi])


def _one_token(at: int) -> Callable[[int, npt.NDArray[np.int32]], npt.NDArray[np.int32]]:
    def edit(start: int, ids: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        changed = ids.copy()
        if start <= at < start + len(ids):
            changed[at - start] = (changed[at - start] + 1) % 4096
        return changed

    return edit


def _injected(start: int, ids: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """The first eight tokens replaced by an instruction of the node's own."""
    where = np.arange(start, start + len(ids))
    return np.where(where < 8, 100 + where, ids).astype(np.int32)


def _cache(number: int, name: str, changes: str, kinds: tuple[type[KVCache], type[ExactCache]]) -> Attack:
    return Attack(number, name, changes, lambda shop, e: ex.OtherCache(e, shop.cache(e, kinds)))


# Falsified weights run in the float engine, as float32: what a node saves by packing them is not measured, nor what it
# would save in the exact engine. Caches are imitated: their numbers are computed and then spoilt.
BOTH: frozenset[NumericProfile] = frozenset({"exact", "float"})
FLOAT: frozenset[NumericProfile] = frozenset({"float"})

SEVERE, CAUGHT, BELOW = ExpectedVerdict.SEVERE, ExpectedVerdict.CAUGHT, ExpectedVerdict.BELOW

ATTACKS: tuple[Attack, ...] = (
    _weights(1, "model_swap", "weights of another model of the same size", wt.other_seed, timed=FLOAT),
    _weights(2, "precision_fp16", "weights in fp16", wt.precision("fp16"), CAUGHT),
    _weights(2, "precision_bf16", "weights in bf16", wt.precision("bf16")),
    _weights(2, "precision_fp8", "weights in fp8 e4m3, scaled by row", wt.precision("fp8")),
    _weights(2, "precision_int8", "weights as int8 rows", wt.precision("int8")),
    _weights(2, "precision_int6", "weights in 6 bits", wt.precision("int6")),
    _weights(2, "precision_int4", "weights in 4 bits", wt.precision("int4")),
    Attack(2, "bf16_compute", "products in bfloat16, undeclared", _bf16, timed=FLOAT),
    _integers(2, "integers_7bit", "int8 weights without their last bit, exact engine", wt.integer_bits(7)),
    _integers(2, "integers_4bit", "int8 weights with 4 of their bits, exact engine", wt.integer_bits(4)),
    _weights(3, "rank_98", "98 % of the rank of every matrix", wt.rank(0.98), timed=FLOAT),
    _weights(3, "rank_90", "90 % of the rank", wt.rank(0.90), timed=FLOAT),
    _weights(3, "rank_75", "75 % of the rank", wt.rank(0.75), timed=FLOAT),
    _weights(3, "rank_50", "50 % of the rank", wt.rank(0.50), timed=FLOAT),
    Attack(4, "skip_layer", "one layer of the range left out", _skip_layer, timed=BOTH),
    Attack(4, "skip_all", "no layer computed at all", lambda _shop, e: ex.PassThrough(e), timed=BOTH),
    Attack(4, "dup_layer", "one layer run twice", _dup_layer, timed=BOTH),
    Attack(4, "wrong_shard", "the neighbouring layers instead", _wrong_shard, where="later", timed=BOTH),
    _cache(5, "kv_fp8", "keys and values in 8 bits", (ex.Fp8Cache, ex.Fp8ExactCache)),
    Attack(5, "kv_window", "attention over the last 32 positions only", _window, timed=BOTH),
    _cache(5, "kv_stale", "keys and values of every fourth position not computed", (ex.StaleCache, ex.StaleExactCache)),
    _weights(6, "finetune_1e-2", "weights x (1 + 1e-2 noise)", wt.noise(1e-2)),
    _weights(6, "finetune_1e-3", "weights x (1 + 1e-3 noise)", wt.noise(1e-3)),
    _weights(6, "finetune_1e-4", "weights x (1 + 1e-4 noise)", wt.noise(1e-4), CAUGHT),
    _weights(6, "lora_down_proj", "a rank-1 update of 1e-3 on one matrix of every layer", wt.lora("down_proj")),
    _integers(6, "integer_off_by_one", "one integer of one matrix, by one", wt.one_step("o_proj")),
    Attack(
        *(7, "prompt_edit", "hop 0 runs a prompt with one other token"),
        lambda _shop, e: ex.EditedIds(e, _one_token(5)),
        where="first",
    ),
    Attack(
        *(7, "system_inject", "hop 0 runs its own first eight tokens"),
        lambda _shop, e: ex.EditedIds(e, _injected),
        where="first",
    ),
    _output(8, "out_noise_1e-2", "noise of 1e-2 of the update on the output", ex.noisy(1e-2)),
    _output(8, "out_noise_1e-3", "noise of 1e-3", ex.noisy(1e-3)),
    _output(8, "out_noise_1e-4", "noise of 1e-4", ex.noisy(1e-4), CAUGHT),
    _output(8, "out_noise_1e-5", "noise of 1e-5, below the tolerance", ex.noisy(1e-5), BELOW),
    _output(8, "out_sparse", "one coordinate of every row, by 1e-3 of the update", ex.one_coordinate(1e-3)),
    _output(8, "out_one_token", "one position of the job, by 1e-3 of its update", ex.one_position(20, 1e-3)),
    _output(8, "out_one_ulp", "the last bit of one value of the job", ex.one_ulp(20), BELOW),
    _output(8, "out_outside_topk", "all but the 32 largest values of each row", ex.outside_largest(32, 3e-2)),
    _tokens("greedy_swap", "the likeliest token instead of a draw", ex.greedy),
    _tokens("temperature", "a temperature 1.5 times as high", ex.hotter),
    _tokens("top_p_swap", "only the three likeliest tokens", ex.narrower),
    _tokens("sampling_bias", "a push of 2 for every 16th token", ex.biased),
    _tokens("seed_change", "a seed of its own", ex.own_seed),
    Attack(12, "cached_replay", "rows of an earlier job", _stale_job, timed=BOTH),
    Attack(
        12,
        "shifted_positions",
        "at every position the row of the one before",
        lambda _shop, e: ex.Shifted(e),
        timed=BOTH,
    ),
)


def attack(name: str) -> Attack:
    """The strategy called `name`; KeyError when there is none."""
    return {item.name: item for item in ATTACKS}[name]


def applies(item: Attack, profile: NumericProfile, hop: int, hops: int) -> bool:
    """Whether hop `hop` of a route can do this in the profile."""
    here = {"any": True, "first": hop == 0, "later": hop > 0, "last": hop == hops - 1}[item.where]
    return here and item.expected(profile) is not ExpectedVerdict.NONE
