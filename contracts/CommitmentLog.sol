// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";
import {EntryPause} from "./EntryPause.sol";
import {EpochClock} from "./EpochClock.sol";
import {ICommitmentLog} from "./interfaces/ICommitmentLog.sol";
import {INodeRegistry} from "./interfaces/INodeRegistry.sol";

/// @title CommitmentLog
/// @notice A ring of 64 batches for each node. A slot is used again once its batch can no longer be challenged.
contract CommitmentLog is ICommitmentLog, EpochClock, EntryPause {
    using SafeCast for uint256;

    /// @dev One slot. 184 bits of the digest keep a second preimage out of reach.
    struct Batch {
        bytes23 digest;
        uint32 seq;
        uint40 postedAt;
    }

    uint64 public constant RING = 64;
    uint40 public constant MIN_WINDOW = 1;
    uint40 public constant MAX_WINDOW = 30 days;

    /// @notice Says who is a node.
    INodeRegistry public immutable nodes;
    /// @inheritdoc ICommitmentLog
    uint40 public immutable challengeWindow;

    mapping(address node => Batch[64]) private _rings;

    constructor(INodeRegistry nodes_, uint64 genesis_, uint32 epochLength_, uint40 challengeWindow_)
        EpochClock(genesis_, epochLength_)
        EntryPause(address(nodes_.vault()))
    {
        // INVARIANT: batches can be challenged, and rings become free again.
        require(
            challengeWindow_ >= MIN_WINDOW && challengeWindow_ <= MAX_WINDOW,
            WindowOutOfBounds(challengeWindow_, MIN_WINDOW, MAX_WINDOW)
        );
        nodes = nodes_;
        challengeWindow = challengeWindow_;
    }

    /// @inheritdoc ICommitmentLog
    function post(uint64 epoch, uint64 seq, bytes32 root, uint32 count) external whenEntryOpen {
        // INVARIANT: a batch commits to something.
        require(root != 0 && count != 0, EmptyBatch());
        uint64 current = currentEpoch();
        // INVARIANT: a root is recorded in the epoch it names, however late its transaction is mined.
        require(epoch == current, WrongEpoch(current, epoch));
        // INVARIANT: only nodes, also retired ones that finish their work, post.
        require(nodes.statusOf(msg.sender) != 0, NotANode(msg.sender));
        Batch[64] storage ring = _rings[msg.sender];
        // INVARIANT: numbers have neither gaps nor repetitions.
        // `require` would evaluate the argument, a walk around the ring, on every call.
        if (!_isNext(ring, seq)) revert WrongSequence(_nextSeq(ring), seq);
        Batch storage slot = ring[seq % RING];
        if (slot.digest != 0) {
            uint256 freeAt = uint256(slot.postedAt) + challengeWindow;
            // INVARIANT: a batch inside its window is never overwritten.
            require(block.timestamp >= freeAt, RingFull(freeAt));
        }
        ring[seq % RING] = Batch({
            digest: _digest(root, count, epoch), seq: uint256(seq).toUint32(), postedAt: block.timestamp.toUint40()
        });
        emit BatchPosted(msg.sender, epoch, seq, root, count);
    }

    /// @inheritdoc ICommitmentLog
    function nextSeq(address node) external view returns (uint64) {
        return _nextSeq(_rings[node]);
    }

    /// @inheritdoc ICommitmentLog
    function isCommitted(address node, uint64 seq, bytes32 root, uint32 count, uint64 epoch)
        external
        view
        returns (bool)
    {
        Batch storage slot = _rings[node][seq % RING];
        return slot.seq == seq && slot.digest != 0 && slot.digest == _digest(root, count, epoch);
    }

    /// @dev Told from two slots: the batch before `seq` is there, and the slot of `seq` is empty or a lap behind.
    function _isNext(Batch[64] storage ring, uint64 seq) private view returns (bool) {
        Batch storage slot = ring[seq % RING];
        if (slot.digest != 0 && uint256(slot.seq) + RING != seq) return false;
        if (seq == 0) return true;
        Batch storage last = ring[(seq - 1) % RING];
        return last.digest != 0 && last.seq == seq - 1;
    }

    function _nextSeq(Batch[64] storage ring) private view returns (uint64 next) {
        for (uint256 i; i < RING; ++i) {
            Batch storage slot = ring[i];
            if (slot.digest == 0) break;
            if (slot.seq >= next) next = uint64(slot.seq) + 1;
        }
    }

    function _digest(bytes32 root, uint32 count, uint64 epoch) private pure returns (bytes23) {
        return bytes23(keccak256(abi.encode(root, count, epoch)));
    }
}
