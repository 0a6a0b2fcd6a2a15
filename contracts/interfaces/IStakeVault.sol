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
    /// @param needed Amount asked for, wei.
    /// @param available Active stake of the operator, wei.
    error InsufficientStake(uint256 needed, uint256 available);
    /// @notice The unbonding period is not over.
    /// @param readyAt End of the unbonding period, unix seconds.
    error NotReady(uint256 readyAt);
    /// @notice Open cases hold the stake.
    /// @param locks Number of open cases.
    error StakeLocked(uint256 locks);
    /// @notice There is no case to release.
    /// @param operator Account of the node or verifier.
    error NotLocked(address operator);
    /// @notice An accuser may not take more than half of a slash.
    /// @param bps Value given, basis points.
    /// @param max Greatest value allowed, basis points.
    error RewardCutTooHigh(uint256 bps, uint256 max);
    /// @notice The operator has not allowed this sponsor.
    /// @param operator Account whose stake would grow.
    /// @param sponsor Account that sent the transaction.
    error SponsorNotAllowed(address operator, address sponsor);
    /// @notice The unbonding period is outside its bounds, seconds.
    /// @param period Value given.
    /// @param min Least value allowed, seconds.
    /// @param max Greatest value allowed, seconds.
    error UnbondingPeriodOutOfBounds(uint256 period, uint256 min, uint256 max);
}

/// @title IStakeVaultEvents
interface IStakeVaultEvents {
    /// @notice Tokens were added to the active stake of an operator.
    /// @param operator Account of the node or verifier.
    /// @param from Account that paid.
    /// @param amount Tokens added, wei.
    /// @param active Active stake now, wei.
    event Staked(address indexed operator, address indexed from, uint256 amount, uint256 active);
    /// @notice An operator allowed or forbade a sponsor to add to its stake.
    /// @param operator Account of the node or verifier.
    /// @param sponsor Account that may pay.
    /// @param allowed Whether it may pay from now on.
    event SponsorSet(address indexed operator, address indexed sponsor, bool allowed);
    /// @notice An operator began to take out stake.
    /// @param operator Account of the node or verifier.
    /// @param amount Tokens that were moved from active to unbonding stake, wei.
    /// @param readyAt When all unbonding stake may leave, unix seconds.
    event UnbondStarted(address indexed operator, uint256 amount, uint256 readyAt);
    /// @notice All unbonding stake became active again.
    /// @param operator Account of the node or verifier.
    /// @param amount Tokens moved, wei.
    event UnbondCancelled(address indexed operator, uint256 amount);
    /// @notice Unbonded stake was paid out.
    /// @param operator Account of the node or verifier.
    /// @param amount Tokens paid out, wei.
    event Withdrawn(address indexed operator, uint256 amount);
    /// @notice Stake was taken from an operator.
    /// @param operator Account of the node or verifier.
    /// @param caseId What it was taken for.
    /// @param fromActive Part taken from the active stake, wei.
    /// @param fromUnbonding Part taken from the unbonding stake, wei.
    /// @param reward Part paid to the beneficiary, wei.
    /// @param burned Part burned, wei.
    event Slashed(
        address indexed operator,
        bytes32 indexed caseId,
        uint256 fromActive,
        uint256 fromUnbonding,
        uint256 reward,
        uint256 burned
    );
    /// @notice A case against an operator was opened.
    /// @param operator Account of the node or verifier.
    /// @param locks Number of open cases now.
    event Locked(address indexed operator, uint256 locks);
    /// @notice A case against an operator was released.
    /// @param operator Account of the node or verifier.
    /// @param locks Number of open cases now.
    event Unlocked(address indexed operator, uint256 locks);
    /// @notice An operator was barred from routes.
    /// @param operator Account of the node or verifier.
    /// @param until End of the sentence, unix seconds.
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
    /// @return slashed What was taken, wei.
    /// @return reward What the beneficiary got, wei.
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
