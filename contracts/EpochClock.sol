// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {IEpochClock} from "./interfaces/IEpochClock.sol";

/// @title EpochClock
/// @notice Mixin: epochs of equal length, each in three equal phases.
abstract contract EpochClock is IEpochClock {
    uint32 internal constant MIN_EPOCH_LENGTH = 3;
    uint32 internal constant MAX_EPOCH_LENGTH = 30 days;

    uint8 internal constant PHASE_COMMIT = 0;
    uint8 internal constant PHASE_REVEAL = 1;
    uint8 internal constant PHASE_TALLY = 2;

    /// @inheritdoc IEpochClock
    uint64 public immutable genesis;
    /// @inheritdoc IEpochClock
    uint32 public immutable epochLength;

    constructor(uint64 genesis_, uint32 epochLength_) {
        // INVARIANT: three phases of at least a second each.
        require(
            epochLength_ >= MIN_EPOCH_LENGTH && epochLength_ <= MAX_EPOCH_LENGTH,
            EpochLengthOutOfBounds(epochLength_, MIN_EPOCH_LENGTH, MAX_EPOCH_LENGTH)
        );
        genesis = genesis_;
        epochLength = epochLength_;
    }

    /// @inheritdoc IEpochClock
    function epochOf(uint256 timestamp) public view returns (uint64) {
        // INVARIANT: there is no epoch before the first.
        require(timestamp >= genesis, ClockNotStarted(genesis, timestamp));
        return uint64((timestamp - genesis) / epochLength + 1);
    }

    /// @inheritdoc IEpochClock
    function currentEpoch() public view returns (uint64) {
        return epochOf(block.timestamp);
    }

    /// @inheritdoc IEpochClock
    function epochStart(uint64 e) public view returns (uint256) {
        return uint256(genesis) + (uint256(e) - 1) * epochLength;
    }

    /// @inheritdoc IEpochClock
    function phase() public view returns (uint8) {
        return uint8(((block.timestamp - epochStart(currentEpoch())) * 3) / epochLength);
    }
}
