// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

/// @title ICommitmentLogErrors
interface ICommitmentLogErrors {
    /// @notice The caller never registered as a node.
    /// @param caller Account that sent the transaction.
    error NotANode(address caller);
    /// @notice Batches are numbered 0, 1, 2, ... for each node.
    /// @param expected Number of the node's next batch.
    /// @param given Number in the call.
    error WrongSequence(uint256 expected, uint256 given);
    /// @notice The root names another epoch than the running one, e.g. because the transaction was mined late.
    /// @param current Epoch of the block.
    /// @param given Epoch in the call.
    error WrongEpoch(uint256 current, uint256 given);
    /// @notice A batch needs a root and at least one leaf.
    error EmptyBatch();
    /// @notice The ring is full of batches that can still be challenged.
    /// @param freeAt When the oldest batch may be overwritten, unix seconds.
    error RingFull(uint256 freeAt);
    /// @notice The challenge window is outside its bounds, seconds.
    /// @param window Value given.
    /// @param min Least value allowed, seconds.
    /// @param max Greatest value allowed, seconds.
    error WindowOutOfBounds(uint256 window, uint256 min, uint256 max);
}

/// @title ICommitmentLogEvents
interface ICommitmentLogEvents {
    /// @notice A node posted the Merkle root of a batch.
    /// @param node Account of the node.
    /// @param epoch Epoch in which it was posted; its leaves are audited in the next one.
    /// @param seq Number of the batch, counted from 0 for each node.
    /// @param root Root over the batch, with node, epoch, seq and count.
    /// @param count Number of leaves.
    event BatchPosted(address indexed node, uint64 indexed epoch, uint64 seq, bytes32 root, uint32 count);
}

/// @title ICommitmentLog
/// @notice Merkle roots of the nodes' batches of receipts: one slot write per batch of any size.
interface ICommitmentLog is ICommitmentLogErrors, ICommitmentLogEvents {
    /// @notice Posts batch number `seq` of the caller for `epoch`, which must be the current one.
    function post(uint64 epoch, uint64 seq, bytes32 root, uint32 count) external;

    /// @notice Number of the next batch of `node`.
    function nextSeq(address node) external view returns (uint64);

    /// @notice Whether `node` posted this batch in `epoch` and it is still in the ring.
    function isCommitted(address node, uint64 seq, bytes32 root, uint32 count, uint64 epoch)
        external
        view
        returns (bool);

    /// @notice How long a batch stays provable for sure, seconds.
    function challengeWindow() external view returns (uint40);
}
