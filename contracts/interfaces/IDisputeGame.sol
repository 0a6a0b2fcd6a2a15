// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

/// @title IDisputeGameTypes
interface IDisputeGameTypes {
    /// @notice What a node signs about a job, member by member as in the EIP-712 message of the same name.
    struct HopCommit {
        bytes32 jobId;
        bytes32 specHash;
        uint16 hop;
        uint16 lo;
        uint16 hi;
        uint8 profile;
        uint8 wireDtype;
        uint32 tokens;
        bytes32 modelId;
        bytes32 shardRoot;
        bytes32 inRoot;
        bytes32 outRoot;
        bytes32 tokensHash;
        bytes32 auxRoot;
        bytes32 prevCommit;
        uint64 epoch;
    }
}

/// @title IDisputeGameErrors
interface IDisputeGameErrors {
    /// @notice The commits are about different jobs or hops.
    error NotTheSameWork(bytes32 jobA, uint256 hopA, bytes32 jobB, uint256 hopB);
    /// @notice The commits are the same one, or not in ascending order of their digests.
    error CommitsNotAscending(bytes32 digestA, bytes32 digestB);
    /// @notice The signature is malformed, malleable, or not by a key that the node ever registered.
    error NotSignedByNode(address node, address signer);
    /// @notice The node was slashed for this job and hop.
    error AlreadyProven(bytes32 caseId);
    /// @notice The node has no stake to take; the proof stays good until it has.
    error NothingAtStake(address node);
    /// @notice A parameter is outside its bounds.
    error ParamOutOfBounds(bytes32 name, uint256 value, uint256 min, uint256 max);
}

/// @title IDisputeGameEvents
interface IDisputeGameEvents {
    event EquivocationProven(
        address indexed node,
        bytes32 indexed jobId,
        uint16 hop,
        address indexed accuser,
        bytes32 digestA,
        bytes32 digestB,
        uint256 slashed,
        uint256 reward,
        uint32 excludedUntil
    );
}

/// @title IDisputeGame
/// @notice Faults that signatures prove by themselves. No jury, no bond, no phase: whoever has the proof shows it.
interface IDisputeGame is IDisputeGameTypes, IDisputeGameErrors, IDisputeGameEvents {
    /// @notice Shows two different commits of one node for one job and hop: a share of its stake is slashed, the caller
    /// gets a part of that, and the node is excluded. Anyone; also when the node has changed its key, paused or retired.
    /// @param a The commit with the lower EIP-712 digest. @param sigA 65 bytes, s in the lower half.
    /// @param b The commit with the higher one. @param sigB Its signature, maybe by another key of the node.
    /// @return slashed What was taken, wei. @return reward What the caller got, wei.
    function proveEquivocation(
        address node,
        HopCommit calldata a,
        bytes calldata sigA,
        HopCommit calldata b,
        bytes calldata sigB
    ) external returns (uint256 slashed, uint256 reward);

    /// @notice What a node's signer signs for a commit.
    function commitDigest(HopCommit calldata c) external view returns (bytes32);

    /// @notice Whether the node was slashed for equivocation in this job and hop.
    function isProven(address node, bytes32 jobId, uint16 hop) external view returns (bool);

    /// @notice Name of the case, also in StakeVault's event.
    function caseIdOf(address node, bytes32 jobId, uint16 hop) external pure returns (bytes32);

    /// @notice Share of the stake, active and unbonding, that a proven fault costs.
    function slashBps() external view returns (uint16);

    /// @notice Share of what is slashed that the accuser gets; the rest is burned.
    function rewardBps() external view returns (uint16);
}
