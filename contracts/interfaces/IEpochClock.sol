// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

/// @title IEpochClock
/// @notice Time cut into epochs. Pure arithmetic on block.timestamp: nobody has to poke it.
/// @dev Epoch 1 starts at `genesis`. The work of epoch e is judged in epoch e+1 and claimed from epoch e+2 on.
interface IEpochClock {
    /// @notice The clock was read before its first epoch began.
    /// @param genesis Start of epoch 1, unix seconds.
    /// @param timestamp Time that was asked for, unix seconds.
    error ClockNotStarted(uint256 genesis, uint256 timestamp);
    /// @notice An epoch cannot have this length.
    /// @param length Value given, seconds.
    /// @param min Least value allowed, seconds.
    /// @param max Greatest value allowed, seconds.
    error EpochLengthOutOfBounds(uint256 length, uint256 min, uint256 max);

    /// @notice Start of epoch 1, unix seconds.
    function genesis() external view returns (uint64);

    /// @notice Length of an epoch, seconds.
    function epochLength() external view returns (uint32);

    /// @notice Epoch that holds `timestamp`; the first is 1.
    function epochOf(uint256 timestamp) external view returns (uint64);

    /// @notice Epoch of the current block.
    function currentEpoch() external view returns (uint64);

    /// @notice First second of epoch `e`.
    function epochStart(uint64 e) external view returns (uint256);

    /// @notice Third of the current epoch: 0 commit, 1 reveal, 2 tally.
    function phase() external view returns (uint8);
}
