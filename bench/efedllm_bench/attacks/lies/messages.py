"""The catalog of lies in messages and commitments: what is signed, hashed and shown.

A lie takes a real job of the lab, tells one lie about it, and passes the result to its judge: the code that a verifier,
a node or a client runs, or the compiled contracts. It returns the code of the fault that the judge names, "" for none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from efedllm_bench.attacks.lab import Lab, LabJob
from efedllm_bench.attacks.lies import batches, boundaries, commits, drift, equivocation, prompts, specs
from efedllm_bench.cheats.catalog import NumericProfile

Judge = Literal["verifier", "node", "client", "contract", "nobody"]


@dataclass(frozen=True)
class MessageAttack:
    """A lie in what is signed or shown.

    number: in the attack list; changes: the lie in words; run: tells it and returns the code that the judge names;
    finds: the code that it must name, exact: the same in the exact profile, "" where it does not differ;
    judge: whose code is asked, "nobody" where a function could judge, but nothing that runs calls it.
    """

    number: int
    name: str
    changes: str
    run: Callable[[Lab, LabJob], str]
    finds: str
    exact: str = ""
    judge: Judge = "verifier"

    def expected(self, profile: NumericProfile) -> str:
        """The code that the judge must name in a numeric profile."""
        return self.exact if self.exact and profile == "exact" else self.finds


MESSAGE_ATTACKS: tuple[MessageAttack, ...] = (
    MessageAttack(
        7,
        "prompt_edit_committed",
        "hop 0 commits to a prompt with one other token",
        prompts.one_token_edited,
        "wrong-prompt",
    ),
    MessageAttack(7, "prompt_drop", "hop 0 leaves out the first token", prompts.first_token_dropped, "wrong-prompt"),
    MessageAttack(
        7,
        "system_inject_committed",
        "hop 0 puts three tokens before the prompt",
        prompts.tokens_injected,
        "wrong-length",
    ),
    MessageAttack(
        10,
        "tokens_rewritten",
        "the last hop shows another token than it committed to",
        commits.tokens_rewritten,
        "tokens-hash",
    ),
    MessageAttack(
        11, "lazy_copy_leaf", "another node's leaf in one's own batch", batches.copied_leaf, "commit-signature"
    ),
    MessageAttack(
        11, "lazy_copy_commit", "another hop's commitment, signed by oneself", commits.copied_commit, "wrong-shard"
    ),
    MessageAttack(11, "lazy_copy_root", "another node's batch root", batches.copied_root, "other-root"),
    MessageAttack(12, "stale_commit", "a commitment of another job", commits.stale_commit, "foreign-job"),
    MessageAttack(12, "stale_rows", "rows of another job", boundaries.stale_rows, "withheld"),
    MessageAttack(
        *(15, "equivocation", "two commitments for one job and hop", equivocation.played, "slashed"), judge="contract"
    ),
    MessageAttack(15, "two_specs", "another signed spec of the job for every verifier", specs.two_specs, "wrong-spec"),
    MessageAttack(
        *(15, "second_spec_committed", "tokens of one spec, a commitment to the other"),
        *(specs.committed_to_the_other, "wrong-token"),
    ),
    MessageAttack(
        *(15, "spec_for_each_hop", "another signed spec for the next hop", specs.one_for_each_hop, "commit-mismatch"),
        judge="node",
    ),
    MessageAttack(
        15,
        "sender_lies",
        "commits to other rows than it sent",
        lambda lab, job: boundaries.dispute(lab, job, "sender"),
        "sender-lied",
    ),
    MessageAttack(
        15,
        "receiver_lies",
        "commits to other rows than it got",
        lambda lab, job: boundaries.dispute(lab, job, "receiver"),
        "receiver-lied",
    ),
    MessageAttack(
        15,
        "bad_envelope",
        "inputs that nobody sent, under forged envelopes",
        boundaries.forged_envelope,
        "unsigned-input",
    ),
    MessageAttack(
        *(16, "commit_omission", "no commitment for a job that was served", commits.omitted, "missing-commit"),
        judge="client",
    ),
    MessageAttack(16, "late_commit", "a commitment two epochs old", commits.late, "wrong-epoch"),
    MessageAttack(25, "nonfinite_bytes", "a NaN in the output", boundaries.nonfinite, "bad-output-bytes"),
    MessageAttack(25, "minus_zero", "a negative zero in the output", boundaries.minus_zero, "bad-output-bytes"),
    MessageAttack(25, "wrong_endianness", "the output in big-endian", boundaries.big_endian, "bad-output-bytes"),
    MessageAttack(
        25, "dtype_lie", "another wire dtype than the client signed", commits.wrong_dtype, "foreign-job", "wrong-wire"
    ),
    MessageAttack(25, "length_lie", "more positions than the job may have", commits.wrong_length, "wrong-length"),
    MessageAttack(25, "half_rows", "rows of half the width", boundaries.half_rows, "bad-length", judge="node"),
    MessageAttack(25, "second_preimage", "an inner node passed off as a leaf", batches.second_preimage, "other-root"),
    MessageAttack(25, "odd_leaf", "the last leaf twice", batches.leaf_repeated, "other-root"),
    MessageAttack(26, "verifier_drift", "a verifier whose backend changed", drift.changed_backend, "abstains"),
    MessageAttack(28, "other_chain", "a signature for another deployment", commits.other_chain, "commit-signature"),
    MessageAttack(28, "malleable_signature", "the other s of a signature", commits.malleable, "bad-signature"),
    MessageAttack(28, "resold_job", "a job of another session", commits.other_session, "foreign-job"),
)
