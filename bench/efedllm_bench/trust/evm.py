"""The project's compiled contracts in an in-process EVM. The one place of the package that knows their ABI.

Addresses of contracts and functions come from the artifacts and from `efedllm_deploy.plan`, and an attestation is
hashed by `efedllm_verifier.attestation`, so that a function that moves from one contract to another is still found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyrevm
from eth_utils.address import to_checksum_address

from efedllm.chain.artifacts import CONTRACTS, artifact
from efedllm.chain.codec import Codec
from efedllm.commitments.hashing import keccak
from efedllm.commitments.messages import Domain, SignedCommit
from efedllm.errors import ChainError
from efedllm_bench.trust.committee import Said
from efedllm_bench.trust.rule import Rule
from efedllm_deploy.plan import constructor_args, grants
from efedllm_deploy.profile import Profile
from efedllm_verifier.attestation import Attestation, NodeVerdict, commitment, prepare
from efedllm_verifier.verdict import pack_verdict

CHAIN_ID = 31337
GENESIS = 1_700_000_000
COMMIT, REVEAL, TALLY = 0, 1, 2


def address_of(name: str) -> str:
    """A deterministic address for a role, EIP-55."""
    return to_checksum_address(keccak(name.encode())[12:])


class Network:
    """All contracts of a profile, deployed, with one model of `layers` layers. Time moves only through `move_to`."""

    def __init__(self, profile: Profile, layers: int = 4) -> None:
        self.profile = profile
        self.rule = Rule.of(profile)
        self._evm = pyrevm.EVM(env=pyrevm.Env(cfg=pyrevm.CfgEnv(chain_id=CHAIN_ID)), spec_id="SHANGHAI")
        self._block, self._time = 1_000, GENESIS
        self._admin = address_of("admin")
        self._codecs = {name: Codec(name, artifact(name).abi) for name in CONTRACTS}
        self.addresses: dict[str, str] = {}
        self.move_to(1, COMMIT)
        for name in CONTRACTS:
            args = constructor_args(name, profile, GENESIS, self._admin, address_of("treasury"), self.addresses)
            code = bytes.fromhex(artifact(name).bytecode.removeprefix("0x"))
            deployed = self._evm.deploy(self._admin, code + self._codecs[name].encode_constructor(args))
            self.addresses[name] = to_checksum_address(deployed)
        for grant in grants(self.addresses):
            self.send(self._admin, grant.contract, "grantRole", grant.role, grant.holder)
        self.model_id = self._publish(layers)

    def move_to(self, epoch: int, phase: int) -> None:
        """First second of a phase of an epoch, in a new block."""
        length = self.profile.clock.epoch_length
        # Phases are thirds, counted in whole seconds: rounding up lands in the wanted one.
        time = GENESIS + (epoch - 1) * length - (-phase * length // 3)
        self._roll(1, time)

    def send(self, caller: str, contract: str, function: str, *args: Any) -> Any:
        """A transaction. Raises ChainError "reverted"."""
        codec = self._codecs[contract]
        data = codec.encode_call(function, list(args))
        try:
            raw = self._evm.message_call(caller, self.addresses[contract], calldata=data)
        except RuntimeError as error:
            raise ChainError("reverted", f"{contract}.{function} failed: {error}.") from error
        return codec.decode_result(function, len(args), bytes(raw))

    def call(self, contract: str, function: str, *args: Any) -> Any:
        """A view."""
        return self.send(self._admin, contract, function, *args)

    def home_of(self, function: str) -> str:
        """The contract that has `function`: the committee if it does, else the first in deploy order."""
        for name in ("VerifierCommittee", *CONTRACTS):
            if any(item.get("name") == function for item in artifact(name).abi if item["type"] == "function"):
                return name
        raise ChainError("no-function", f"No contract has a function {function}.")

    # ------------------------------------------------------------------------------------------------ participants

    def stake(self, who: str, amount: int) -> None:
        """Give `who` tokens and stake them, wei."""
        self.send(self._admin, "EfedToken", "transfer", who, amount)
        self.send(who, "EfedToken", "approve", self.addresses["StakeVault"], amount)
        self.send(who, "StakeVault", "stake", amount)

    def unbond(self, who: str, amount: int) -> None:
        self.send(who, "StakeVault", "unbond", amount)

    def register(self, node: str, layers: int = 1) -> None:
        """Register a staked node for the first `layers` layers."""
        self.send(
            node,
            "NodeRegistry",
            "register",
            self.model_id,
            0,
            layers,
            1,
            node,
            keccak(b"shard"),
            "https://node.example",
        )

    def set_signer(self, node: str, signer: str) -> None:
        """Let `signer` sign for a registered node; its price becomes 1 wei."""
        self.send(node, "NodeRegistry", "update", 1, signer)

    def prove_equivocation(self, accuser: str, node: str, first: SignedCommit, second: SignedCommit) -> tuple[int, int]:
        """(slashed, reward of the accuser), wei. Raises ChainError where the contract refuses the proof."""
        shown = [part for signed in (first, second) for part in (signed.commit, signed.signature)]
        slashed, reward = self.send(accuser, "DisputeGame", "proveEquivocation", node, *shown)
        return int(slashed), int(reward)

    def balance_of(self, who: str) -> int:
        """Tokens, wei."""
        return int(self.call("EfedToken", "balanceOf", who))

    def take_seat(self, verifier: str) -> None:
        self.send(verifier, self.home_of("takeSeat"), "takeSeat")

    @property
    def efl_domain(self) -> Domain:
        """EIP-712 domain of hop commitments."""
        return Domain(CHAIN_ID, self.addresses["CommitmentLog"])

    # -------------------------------------------------------------------------------------------------------- epochs

    def fix_seed(self, epoch: int) -> bytes:
        """Arm and fix the seed of `epoch`; time must stand in the next one."""
        home = self.home_of("armSeed")
        self.send(self._admin, home, "armSeed", epoch)
        self._roll(3)
        self.send(self._admin, home, "fixSeed", epoch)
        seed = self.call(self.home_of("seedOf"), "seedOf", epoch)
        return bytes(seed)

    def drawn(self, epoch: int, node: str) -> tuple[str, ...]:
        return tuple(to_checksum_address(m) for m in self.call(self.home_of("drawn"), "drawn", epoch, node))

    def attestation(self, epoch: int, verifier: str, said: Mapping[str, Said]) -> Attestation:
        """What a verifier reveals later; the salt follows from its name and the epoch.

        Digests of two verifiers share nothing but their lower 32 bits, the fingerprint, so that whatever the
        contract compares besides would show.
        """
        salt = keccak(verifier.encode() + epoch.to_bytes(8))
        items = [
            NodeVerdict(node, pack_verdict(item.verdict), keccak(node.encode()), salt[:28] + item.tap.to_bytes(4))
            for node, item in said.items()
        ]
        return prepare(epoch, items, salt)

    def commit(self, verifier: str, attestation: Attestation) -> None:
        digest = commitment(attestation, CHAIN_ID, self.addresses["VerifierCommittee"], verifier)
        self.send(verifier, "VerifierCommittee", "commit", attestation.epoch, digest)

    def reveal(self, verifier: str, attestation: Attestation) -> None:
        self.send(
            verifier,
            "VerifierCommittee",
            "reveal",
            attestation.epoch,
            list(attestation.nodes),
            list(attestation.verdicts),
            list(attestation.taps),
            list(attestation.evidence),
            attestation.salt,
        )

    def finalize(self, epoch: int, nodes: Sequence[str]) -> None:
        self.send(self._admin, "VerifierCommittee", "finalize", epoch, list(nodes))

    def judge(self, epoch: int, verifier: str, nodes: Sequence[str]) -> int:
        """The outcome that VerifierJudged names."""
        self.send(self._admin, "VerifierCommittee", "judgeVerifier", epoch, verifier, list(nodes))
        topic = "0x" + keccak(b"VerifierJudged(uint64,address,uint8,uint256,uint256)").hex()
        result = self._evm.result
        for log in result.logs if result is not None else ():
            if log.topics[0] == topic:
                return int.from_bytes(log.data[1][:32])
        raise ChainError("no-event", f"judgeVerifier of {verifier} emitted no VerifierJudged.")

    # --------------------------------------------------------------------------------------------------------- views

    def trust_state(self, node: str) -> tuple[int, int, int, int, int]:
        """alpha, beta, epoch, offences, jailedUntil."""
        return tuple(self.call(self.home_of("trustState"), "trustState", node))

    def trust(self, node: str) -> int:
        return int(self.call(self.home_of("trustOf"), "trustOf", node))

    def standing(self, node: str) -> int:
        return int(self.call(self.home_of("standingOf"), "standingOf", node))

    def audit_rate(self, node: str) -> int:
        return int(self.call(self.home_of("auditRate"), "auditRate", node))

    def agreed_tap(self, epoch: int, node: str) -> int:
        """The final fingerprint about a node, 0 = none."""
        return int(self.call("VerifierCommittee", "tallyOf", epoch, node).tap)

    def stake_of(self, who: str) -> tuple[int, int]:
        """Active and unbonding stake, wei."""
        stake = self.call("StakeVault", "stakeOf", who)
        return int(stake.active), int(stake.unbonding)

    def jailed_until(self, node: str) -> int:
        """Unix seconds; 0 = never jailed."""
        return int(self.call("StakeVault", "jailedUntil", node))

    def points(self, epoch: int, verifier: str) -> int:
        return int(self.call(self.home_of("pointsOf"), "pointsOf", epoch, verifier))

    # ------------------------------------------------------------------------------------------------------ internal

    def _roll(self, blocks: int, time: int | None = None) -> None:
        self._block += blocks
        self._time = self._time if time is None else time
        self._evm.set_block_env(pyrevm.BlockEnv(number=self._block, timestamp=self._time))

    def _publish(self, layers: int) -> bytes:
        params = {
            "weightsRoot": keccak(b"weights"),
            "layers": layers,
            "hidden": 64,
            "rankBps": 10_000,
            "quant": 0,
            "profile": 0,
            "constantsHash": bytes(32),
            "certificateHash": bytes(32),
        }
        args = (keccak(b"model"), params, keccak(b"manifest"), "https://model.example")
        return bytes(self.send(self._admin, "ModelRegistry", "register", *args))
