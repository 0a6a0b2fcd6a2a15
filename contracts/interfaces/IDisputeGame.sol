// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

/// @title IDisputeGameTypes
interface IDisputeGameTypes {
    /// @notice What a node signs about a job, member by member as in the EIP-712 message of the same name.
    /// @param jobId Job, which names the session.
    /// @param specHash EIP-712 digest of the JobSpec that the hop worked by.
    /// @param hop Place in the route, counted from 0.
    /// @param lo First layer computed.
    /// @param hi One past the last layer computed.
    /// @param profile 0 float, 1 exact, 2 bfloat16.
    /// @param wireDtype Numbers on the wire: 1 float32, 2 bfloat16.
    /// @param tokens Positions computed.
    /// @param modelId Model of the session.
    /// @param shardRoot Root over the tensors of the layers.
    /// @param inRoot Root over the rows read.
    /// @param outRoot Root over the rows written.
    /// @param tokensHash SHA-256 of the emitted token ids on the last hop; zero elsewhere.
    /// @param auxRoot Root over the taps; zero in the float profile.
    /// @param prevCommit EIP-712 digest of the commit of the hop before; zero on hop 0.
    /// @param epoch Epoch in which the commit was made.
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
    /// @param jobA Job of the first commit.
    /// @param hopA Hop of the first commit.
    /// @param jobB Job of the second commit.
    /// @param hopB Hop of the second commit.
    error NotTheSameWork(bytes32 jobA, uint256 hopA, bytes32 jobB, uint256 hopB);
    /// @notice The commits are the same one, or not in ascending order of their digests.
    /// @param digestA EIP-712 digest of the first commit.
    /// @param digestB EIP-712 digest of the second commit.
    error CommitsNotAscending(bytes32 digestA, bytes32 digestB);
    /// @notice The signature is malformed, malleable, or not by a key that the node ever registered.
    /// @param node Account of the accused node.
    /// @param signer Key that the signature recovers to; 0 when it is malformed.
    error NotSignedByNode(address node, address signer);
    /// @notice The node was slashed for this job and hop.
    /// @param caseId Name of the case, as caseIdOf returns it.
    error AlreadyProven(bytes32 caseId);
    /// @notice The node has no stake to take; the proof stays good until it has.
    /// @param node Account of the accused node.
    error NothingAtStake(address node);
    /// @notice A parameter is outside its bounds.
    /// @param name Name of the parameter.
    /// @param value Value given.
    /// @param min Least value allowed.
    /// @param max Greatest value allowed.
    error ParamOutOfBounds(bytes32 name, uint256 value, uint256 min, uint256 max);
}

/// @title IDisputeGameEvents
interface IDisputeGameEvents {
    /// @notice Two different commits of one node for one job and hop were shown.
    /// @param node Account of the node.
    /// @param jobId Job of both commits.
    /// @param hop Hop of both commits, counted from 0.
    /// @param accuser Account that showed the proof and gets the reward.
    /// @param digestA Lower EIP-712 digest of the two commits.
    /// @param digestB Higher EIP-712 digest of the two commits.
    /// @param slashed Stake taken from the node, wei.
    /// @param reward Part of it that the accuser got, wei; the rest is burned.
    /// @param excludedUntil Epoch in which the exclusion of the node ends.
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
    /// gets a part of that, and the node is excluded. Anyone may call it, also when the node has changed its key, paused
    /// or retired.
    /// @param node Account of the accused node.
    /// @param a The commit with the lower EIP-712 digest.
    /// @param sigA 65 bytes, s in the lower half.
    /// @param b The commit with the higher one.
    /// @param sigB Its signature, maybe by another key of the node.
    /// @return slashed What was taken, wei.
    /// @return reward What the caller got, wei.
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
