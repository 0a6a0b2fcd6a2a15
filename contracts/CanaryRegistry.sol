// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {EpochClock} from "./EpochClock.sol";
import {ICanaryRegistry} from "./interfaces/ICanaryRegistry.sol";
import {ICommitmentLog} from "./interfaces/ICommitmentLog.sol";
import {ISeatRegistry} from "./interfaces/ISeatRegistry.sol";
import {ISessionEscrow} from "./interfaces/ISessionEscrow.sol";
import {IVerifierCommittee} from "./interfaces/IVerifierCommittee.sol";
import {HopLeaf} from "./libraries/HopLeaf.sol";

/// @title CanaryRegistry
/// @notice Checks openings of planted canaries and hands the committee the fingerprint of the faults they explain.
/// @dev Keeps nothing itself. The consent lies in the salt of a leaf whose root was on chain before the seed existed, and
/// the opening is shown when every verdict is committed: nobody can agree to a cheat after the fact, and no verifier
/// learns of a canary in time.
contract CanaryRegistry is ICanaryRegistry, EpochClock {
    uint256 private constant MAX_OPENINGS = 16;

    /// @notice Knows the sessions.
    ISessionEscrow public immutable escrow;
    /// @notice Holds the batches, and names the domain of commits and consents.
    ICommitmentLog public immutable batches;
    /// @notice Holds the seeds.
    ISeatRegistry public immutable seats;
    /// @notice Says how much of a node is audited, and takes what was opened into account.
    IVerifierCommittee public immutable committee;

    constructor(
        ISessionEscrow escrow_,
        ICommitmentLog batches_,
        ISeatRegistry seats_,
        IVerifierCommittee committee_,
        uint64 genesis_,
        uint32 epochLength_
    ) EpochClock(genesis_, epochLength_) {
        escrow = escrow_;
        batches = batches_;
        seats = seats_;
        committee = committee_;
    }

    /// @inheritdoc ICanaryRegistry
    function open(uint64 e, Opening[] calldata openings) external {
        _requireRevealPhase(e);
        // INVARIANT: the work of a call is bounded, and it opens something.
        require(
            openings.length != 0 && openings.length <= MAX_OPENINGS, OpeningsOutOfBounds(openings.length, MAX_OPENINGS)
        );
        // INVARIANT: a node cannot try one explanation after another.
        require(committee.canaryOf(e, msg.sender) == 0, AlreadyOpened(e, msg.sender));
        bytes32 seed = seats.seedOf(e);
        // INVARIANT: audits follow from the seed.
        require(seed != 0, SeedNotFixed(e));
        bytes32[] memory leaves = _leaves(e, seed, openings);
        bytes32 digest = HopLeaf.faultDigest(seed, leaves);
        committee.admitCanaries(e, msg.sender, digest);
        emit CanaryOpened(msg.sender, e, leaves);
    }

    // ------------------------------------------------------------------------------------------------------ views

    /// @inheritdoc ICanaryRegistry
    function consentDigest(bytes32 jobId, uint16 hop) external view returns (bytes32) {
        return HopLeaf.consentDigest(HopLeaf.domain(address(batches)), jobId, hop);
    }

    /// @inheritdoc ICanaryRegistry
    function leafOf(Opening calldata opening) external view returns (bytes32) {
        return HopLeaf.canaryLeaf(HopLeaf.domain(address(batches)), opening);
    }

    /// @inheritdoc ICanaryRegistry
    function faultDigest(bytes32 seed, bytes32[] calldata leaves) external pure returns (bytes32) {
        return HopLeaf.faultDigest(seed, leaves);
    }

    // --------------------------------------------------------------------------------------------------- internal

    function _leaves(uint64 e, bytes32 seed, Opening[] calldata openings)
        private
        view
        returns (bytes32[] memory leaves)
    {
        bytes32 separator = HopLeaf.domain(address(batches));
        // What the node's leaves were drawn by: no verdict on its work of e is final before the tally.
        uint256 rate = committee.auditRate(msg.sender);
        leaves = new bytes32[](openings.length);
        bytes32 previous;
        for (uint256 i; i < openings.length; ++i) {
            _checkConsent(separator, e, openings[i]);
            bytes32 leaf = HopLeaf.canaryLeaf(separator, openings[i]);
            _checkBatch(e, leaf, openings[i]);
            // INVARIANT: the digest holds each leaf once, in the order that verifiers use.
            require(leaf > previous, LeavesNotAscending(previous, leaf));
            uint256 drawn = HopLeaf.drawnPpm(seed, leaf);
            // INVARIANT: only audited leaves can have failed.
            require(drawn < rate, LeafNotSampled(leaf, drawn, rate));
            leaves[i] = leaf;
            previous = leaf;
        }
    }

    function _checkConsent(bytes32 separator, uint64 e, Opening calldata o) private view {
        HopCommit calldata c = o.commit;
        bytes32 id = escrow.sessionIdOf(o.key);
        // INVARIANT: canaries are paid like any job.
        require(escrow.sessionOf(id).status != 0, UnknownSession(id));
        bytes32 job = HopLeaf.jobOf(id, o.jobSeq);
        // INVARIANT: the job is one of this session.
        require(c.jobId == job, WrongJob(job, c.jobId));
        // INVARIANT: a node opens its own work.
        require(c.hop < o.key.nodes.length && o.key.nodes[c.hop] == msg.sender, NotTheHop(msg.sender, c.hop));
        // INVARIANT: a commit stands in the batch of its own epoch or the next one.
        require(c.epoch == e || uint256(c.epoch) + 1 == e, WrongCommitEpoch(e, c.epoch));
        (address signer, ECDSA.RecoverError error_,) =
            ECDSA.tryRecover(HopLeaf.consentDigest(separator, c.jobId, c.hop), o.consent);
        // INVARIANT: whoever paid for the job agreed that it would be wrong here.
        require(error_ == ECDSA.RecoverError.NoError && signer == o.key.signer, NoConsent(o.key.signer));
    }

    function _checkBatch(uint64 e, bytes32 leaf, Opening calldata o) private view {
        bytes32 root = HopLeaf.batchRoot(msg.sender, e, leaf, o);
        // INVARIANT: the leaf was on chain before the seed was.
        require(batches.isCommitted(msg.sender, o.seq, root, o.count, e), UnknownBatch(e, o.seq, root));
    }

    function _requireRevealPhase(uint64 e) private view {
        uint64 current = currentEpoch();
        uint8 now_ = phase();
        // INVARIANT: every verdict is committed and none is final.
        require(current == uint256(e) + 1 && now_ == PHASE_REVEAL, WrongPhase(e, PHASE_REVEAL, current, now_));
    }
}
