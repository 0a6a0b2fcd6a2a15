// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

/// @title IStakeVaultTypes
interface IStakeVaultTypes {
    /// @notice Stake of one operator, in one slot.
    /// @param active Tokens behind the operator's work, wei.
    /// @param unbonding Tokens on their way out, still slashable, wei.
    /// @param readyAt When `unbonding` may leave, unix seconds; 0 when nothing is unbonding.
    /// @param locks Open cases; while there are any, nothing leaves.
    /// @param flags Bit 0: the operator was jailed at some time, so that others need not read a second slot.
    struct Stake {
        uint96 active;
        uint96 unbonding;
        uint40 readyAt;
        uint16 locks;
        uint8 flags;
    }
}

/// @title IStakeVaultErrors
interface IStakeVaultErrors {
    /// @notice Nothing to move.
    error ZeroAmount();
    /// @notice More was asked for than is staked.
    error InsufficientStake(uint256 needed, uint256 available);
    /// @notice The unbonding period is not over.
    error NotReady(uint256 readyAt);
    /// @notice Open cases hold the stake.
    error StakeLocked(uint256 locks);
    /// @notice There is no case to release.
    error NotLocked(address operator);
    /// @notice An accuser may not take more than half of a slash.
    error RewardCutTooHigh(uint256 bps, uint256 max);
    /// @notice The operator has not allowed this sponsor.
    error SponsorNotAllowed(address operator, address sponsor);
    /// @notice The unbonding period is outside its bounds, seconds.
    error UnbondingPeriodOutOfBounds(uint256 period, uint256 min, uint256 max);
}

/// @title IStakeVaultEvents
interface IStakeVaultEvents {
    event Staked(address indexed operator, address indexed from, uint256 amount, uint256 active);
    event SponsorSet(address indexed operator, address indexed sponsor, bool allowed);
    event UnbondStarted(address indexed operator, uint256 amount, uint256 readyAt);
    event UnbondCancelled(address indexed operator, uint256 amount);
    event Withdrawn(address indexed operator, uint256 amount);
    event Slashed(
        address indexed operator,
        bytes32 indexed caseId,
        uint256 fromActive,
        uint256 fromUnbonding,
        uint256 reward,
        uint256 burned
    );
    event Locked(address indexed operator, uint256 locks);
    event Unlocked(address indexed operator, uint256 locks);
    event Jailed(address indexed operator, uint256 until);
}

/// @title IStakeVault
/// @notice Holds the stake of nodes and verifiers. Slashing clamps, reaches unbonding stake and never reverts for size.
interface IStakeVault is IStakeVaultTypes, IStakeVaultErrors, IStakeVaultEvents {
    /// @notice Moves `amount` from the caller into its active stake.
    function stake(uint256 amount) external;

    /// @notice `stake` after a permit; a permit that somebody else submitted first does no harm.
    function stakeWithPermit(uint256 amount, uint256 deadline, uint8 v, bytes32 r, bytes32 s) external;

    /// @notice Lets `sponsor` add to the caller's stake, or no longer.
    function setSponsor(address sponsor, bool ok) external;

    /// @notice Adds the caller's tokens to the stake of `operator`, who must have allowed it.
    function stakeFor(address operator, uint256 amount) external;

    /// @notice Starts taking `amount` out. Merges with what is already unbonding and restarts the clock for all of it.
    function unbond(uint256 amount) external;

    /// @notice Returns everything that is unbonding to the active stake.
    function cancelUnbond() external;

    /// @notice Pays out what has unbonded.
    function withdraw() external;

    /// @notice Takes min(amount, active + unbonding) from `op`. SLASHER_ROLE only.
    /// @param beneficiary Receives the reward; address 0 for none.
    /// @param rewardBps Share of the slashed amount for the beneficiary, at most half; the rest is burned.
    /// @param caseId What the slash is for, for the event.
    /// @return slashed What was taken, wei. @return reward What the beneficiary got, wei.
    function slash(address op, uint256 amount, address beneficiary, uint256 rewardBps, bytes32 caseId)
        external
        returns (uint256 slashed, uint256 reward);

    /// @notice Opens a case against `op`: nothing can be withdrawn until it is released. SLASHER_ROLE only.
    function lock(address op) external;

    /// @notice Releases one case. SLASHER_ROLE only.
    function unlock(address op) external;

    /// @notice Bars `op` from routes until `until` (unix seconds). Never shortens a sentence. SLASHER_ROLE only.
    function jail(address op, uint40 until) external;

    /// @notice Stake of `op`.
    function stakeOf(address op) external view returns (Stake memory);

    /// @notice Sums over all operators, wei.
    function totals() external view returns (uint128 active, uint128 unbonding);

    /// @notice End of the last sentence of `op`, unix seconds; 0 when never jailed.
    function jailedUntil(address op) external view returns (uint40);

    /// @notice How long unbonding takes, seconds.
    function unbondingPeriod() external view returns (uint40);

    /// @notice Whether `sponsor` may add to the stake of `operator`.
    function isSponsor(address operator, address sponsor) external view returns (bool);
}
