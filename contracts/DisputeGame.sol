// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";
import {ICommitmentLog} from "./interfaces/ICommitmentLog.sol";
import {IDisputeGame} from "./interfaces/IDisputeGame.sol";
import {INodeRegistry} from "./interfaces/INodeRegistry.sol";
import {IStakeVault} from "./interfaces/IStakeVault.sol";
import {IVerifierCommittee} from "./interfaces/IVerifierCommittee.sol";
import {HopCommitHash} from "./libraries/HopCommitHash.sol";

/// @title DisputeGame
/// @notice Slashes nodes that two of their own signatures convict.
/// @dev Holds no money and knows no time: a proof is good as long as there is stake to take. No switch closes it.
contract DisputeGame is IDisputeGame {
    uint256 private constant BPS = 10_000;
    uint256 public constant MIN_SLASH_BPS = 1_000;
    /// @dev The vault's own bound, so that a deployment with more fails at once and not at the first proof.
    uint256 public constant MAX_REWARD_BPS = 5_000;

    /// @notice Holds the stakes.
    IStakeVault public immutable vault;
    /// @notice Knows every key that a node registered.
    INodeRegistry public immutable nodes;
    /// @notice Excludes the convicted.
    IVerifierCommittee public immutable committee;
    /// @notice Names the domain of commits.
    ICommitmentLog public immutable batches;
    /// @inheritdoc IDisputeGame
    uint16 public immutable slashBps;
    /// @inheritdoc IDisputeGame
    uint16 public immutable rewardBps;

    mapping(bytes32 caseId => bool) private _proven;

    constructor(
        IStakeVault vault_,
        INodeRegistry nodes_,
        IVerifierCommittee committee_,
        ICommitmentLog batches_,
        uint16 slashBps_,
        uint16 rewardBps_
    ) {
        _bound("slashBps", slashBps_, MIN_SLASH_BPS, BPS);
        _bound("rewardBps", rewardBps_, 0, MAX_REWARD_BPS);
        vault = vault_;
        nodes = nodes_;
        committee = committee_;
        batches = batches_;
        slashBps = slashBps_;
        rewardBps = rewardBps_;
    }

    /// @inheritdoc IDisputeGame
    function proveEquivocation(
        address node,
        HopCommit calldata a,
        bytes calldata sigA,
        HopCommit calldata b,
        bytes calldata sigB
    ) external returns (uint256 slashed, uint256 reward) {
        // INVARIANT: both say what this node did in one hop of one job.
        require(a.jobId == b.jobId && a.hop == b.hop, NotTheSameWork(a.jobId, a.hop, b.jobId, b.hop));
        (bytes32 digestA, bytes32 digestB) = _digests(a, b);
        // INVARIANT: they say different things; a proof has one form.
        require(digestA < digestB, CommitsNotAscending(digestA, digestB));
        _checkSigner(node, digestA, sigA);
        _checkSigner(node, digestB, sigB);
        (slashed, reward) = _convict(node, a.jobId, a.hop, digestA, digestB);
    }

    // ------------------------------------------------------------------------------------------------------ views

    /// @inheritdoc IDisputeGame
    function commitDigest(HopCommit calldata c) external view returns (bytes32) {
        return HopCommitHash.commitDigest(HopCommitHash.domain(address(batches)), c);
    }

    /// @inheritdoc IDisputeGame
    function isProven(address node, bytes32 jobId, uint16 hop) external view returns (bool) {
        return _proven[caseIdOf(node, jobId, hop)];
    }

    /// @inheritdoc IDisputeGame
    function caseIdOf(address node, bytes32 jobId, uint16 hop) public pure returns (bytes32) {
        return keccak256(abi.encode("equivocation", node, jobId, hop));
    }

    // --------------------------------------------------------------------------------------------------- internal

    function _convict(address node, bytes32 jobId, uint16 hop, bytes32 digestA, bytes32 digestB)
        private
        returns (uint256 slashed, uint256 reward)
    {
        bytes32 caseId = caseIdOf(node, jobId, hop);
        // INVARIANT: a fault is punished once, whoever shows it and with however many commits.
        require(!_proven[caseId], AlreadyProven(caseId));
        _proven[caseId] = true;
        IStakeVault.Stake memory s = vault.stakeOf(node);
        uint256 amount = Math.ceilDiv((uint256(s.active) + s.unbonding) * slashBps, BPS);
        // INVARIANT: a case is closed by a punishment: nobody accuses itself while it has nothing to lose.
        require(amount != 0, NothingAtStake(node));
        (slashed, reward) = vault.slash(node, amount, msg.sender, rewardBps, caseId);
        uint32 until = committee.convict(node);
        emit EquivocationProven(node, jobId, hop, msg.sender, digestA, digestB, slashed, reward, until);
    }

    function _digests(HopCommit calldata a, HopCommit calldata b) private view returns (bytes32, bytes32) {
        bytes32 separator = HopCommitHash.domain(address(batches));
        return (HopCommitHash.commitDigest(separator, a), HopCommitHash.commitDigest(separator, b));
    }

    /// @dev Any key the node ever registered: a change of keys neither hides a fault nor makes room for another one.
    function _checkSigner(address node, bytes32 digest, bytes calldata sig) private view {
        (address signer, ECDSA.RecoverError error_,) = ECDSA.tryRecover(digest, sig);
        // INVARIANT: only the node's own word counts against it.
        require(error_ == ECDSA.RecoverError.NoError && nodes.isSigner(node, signer), NotSignedByNode(node, signer));
    }

    function _bound(bytes32 name, uint256 value, uint256 min, uint256 max) private pure {
        // INVARIANT: min <= value <= max.
        require(value >= min && value <= max, ParamOutOfBounds(name, value, min, max));
    }
}
