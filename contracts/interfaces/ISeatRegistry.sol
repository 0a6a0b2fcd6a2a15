// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

/// @title ISeatRegistryTypes
interface ISeatRegistryTypes {
    /// @notice What a seat costs and how many are drawn.
    /// @param committeeSize Verifiers drawn for a node and epoch.
    /// @param seatStake Active stake a seat needs, wei.
    struct Terms {
        uint8 committeeSize;
        uint96 seatStake;
    }

    /// @notice A verifier's place among those from which committees are drawn.
    /// @param verifier Account of the verifier.
    /// @param activeFrom First epoch for which it can be drawn.
    /// @param exitAt First epoch for which it cannot be drawn any more; 0 while it has not left.
    struct Seat {
        address verifier;
        uint32 activeFrom;
        uint32 exitAt;
    }

    /// @notice Where a verifier stands in the committee of a node.
    /// @param size Members drawn.
    /// @param position Place of the verifier, counted from 0; `size` when it was not drawn.
    struct Place {
        uint128 size;
        uint128 position;
    }
}

/// @title ISeatRegistryErrors
interface ISeatRegistryErrors {
    /// @notice A parameter is outside its bounds.
    /// @param name Name of the parameter.
    /// @param value Value given.
    /// @param min Least value allowed.
    /// @param max Greatest value allowed.
    error ParamOutOfBounds(bytes32 name, uint256 value, uint256 min, uint256 max);
    /// @notice A seat needs more active stake.
    /// @param needed Active stake that a seat needs, wei.
    /// @param available Active stake of the caller, wei.
    error SeatStakeTooLow(uint256 needed, uint256 available);
    /// @notice The verifier has a seat.
    /// @param verifier Account of the verifier.
    error SeatTakenAlready(address verifier);
    /// @notice The verifier has no seat that can be left.
    /// @param verifier Account of the verifier.
    error NoSeat(address verifier);
    /// @notice A seat that was left can be taken again from this epoch on.
    /// @param fromEpoch First epoch in which the seat can be taken.
    error SeatCooling(uint256 fromEpoch);
    /// @notice Every seat is taken.
    /// @param max Number of seats.
    error SeatsFull(uint256 max);
    /// @notice The verifier's stake still supports its seat.
    /// @param verifier Account of the verifier.
    /// @param needed Active stake below which the seat can be ended, wei.
    /// @param available Active stake of the verifier, wei.
    error SeatSupported(address verifier, uint256 needed, uint256 available);
    /// @notice The epoch has not ended.
    /// @param epoch Epoch in the call.
    /// @param currentEpoch Epoch of the block.
    error EpochNotOver(uint256 epoch, uint256 currentEpoch);
    /// @notice The seed waits for a block that is not final yet or was not read in time.
    /// @param targetBlock Block whose hash fixes the seed.
    error SeedAlreadyArmed(uint256 targetBlock);
    /// @notice armSeed was not called.
    /// @param epoch Epoch in the call.
    error SeedNotArmed(uint256 epoch);
    /// @notice The target block is not in the past yet.
    /// @param targetBlock Block whose hash fixes the seed.
    /// @param blockNumber Number of the current block.
    error SeedNotReady(uint256 targetBlock, uint256 blockNumber);
    /// @notice The target block is more than 256 blocks old; arm again.
    /// @param targetBlock Block whose hash was to fix the seed.
    /// @param blockNumber Number of the current block.
    error SeedExpired(uint256 targetBlock, uint256 blockNumber);
    /// @notice The seed of the epoch is fixed for ever.
    /// @param epoch Epoch in the call.
    error SeedAlreadyFixed(uint256 epoch);
    /// @notice There is no seed, hence no committee, for the epoch.
    /// @param epoch Epoch in the call.
    error SeedNotFixed(uint256 epoch);
    /// @notice The verifier had no seat in the epoch.
    /// @param epoch Epoch in the call.
    /// @param verifier Account of the verifier.
    error NotSeated(uint256 epoch, address verifier);
}

/// @title ISeatRegistryEvents
interface ISeatRegistryEvents is ISeatRegistryTypes {
    /// @notice Other terms were scheduled.
    /// @param terms The new terms.
    /// @param fromEpoch First epoch in which they count.
    event TermsScheduled(Terms terms, uint64 fromEpoch);
    /// @notice A verifier took a seat.
    /// @param verifier Account of the verifier.
    /// @param activeFrom First epoch for which it can be drawn.
    event SeatTaken(address indexed verifier, uint64 activeFrom);
    /// @notice A verifier left its seat or lost it for lack of stake.
    /// @param verifier Account of the verifier.
    /// @param exitAt First epoch for which it cannot be drawn.
    event SeatLeft(address indexed verifier, uint64 exitAt);
    /// @notice The seed of an epoch was bound to a future block.
    /// @param epoch Epoch whose work the seed selects from.
    /// @param targetBlock Number of the block whose hash fixes the seed.
    event SeedArmed(uint64 indexed epoch, uint256 targetBlock);
    /// @notice The seed of an epoch was fixed.
    /// @param epoch Epoch whose work the seed selects from.
    /// @param seed Seed of the draws of committees and leaves.
    event SeedFixed(uint64 indexed epoch, bytes32 seed);
}

/// @title ISeatRegistry
/// @notice Who may be drawn as a verifier, the random seed of every epoch, and who was drawn for a node.
interface ISeatRegistry is ISeatRegistryErrors, ISeatRegistryEvents {
    /// @notice Takes a seat from the next epoch on.
    function takeSeat() external;

    /// @notice Leaves the seat from the next epoch on; the duties of this epoch stay.
    function leaveSeat() external;

    /// @notice Ends the seat of a verifier whose active stake no longer supports it. Anyone.
    function evictSeat(address verifier) external;

    /// @notice Binds the seed of an ended epoch to the block two after this one. Anyone.
    function armSeed(uint64 e) external;

    /// @notice Fixes the seed from the target block. Anyone.
    function fixSeed(uint64 e) external;

    /// @notice Mixes a revealed salt into the seeds to come. COMMITTEE_ROLE only: a stranger who could do it in the
    /// transaction that fixes a seed would choose the seed.
    function stir(bytes32 salt) external;

    /// @notice Schedules terms for the next epoch. DEFAULT_ADMIN_ROLE only.
    function setTerms(Terms calldata next) external;

    /// @notice Terms in force.
    function terms() external view returns (Terms memory);

    /// @notice Seats active in epoch `e`.
    function seatCount(uint64 e) external view returns (uint256);

    /// @notice Verifiers with a seat in epoch `e`. Exact for the current epoch and the two before it.
    function seatsOf(uint64 e) external view returns (address[] memory);

    /// @notice Number of the seat that a verifier holds or held last, 1 to 64; 0 when it has none.
    function seatNumberOf(address verifier) external view returns (uint256);

    /// @notice Seed of epoch `e`; 0 when not fixed.
    function seedOf(uint64 e) external view returns (bytes32);

    /// @notice Block whose hash fixes the seed of epoch `e`; 0 when not armed.
    function armedBlock(uint64 e) external view returns (uint256);

    /// @notice Committee of a node for epoch `e`, distinct, without the node itself; empty before the seed is fixed.
    function drawn(uint64 e, address node) external view returns (address[] memory);

    /// @notice Whether `verifier` is in the committee of `node` for epoch `e`.
    function isDrawn(uint64 e, address node, address verifier) external view returns (bool);

    /// @notice Seat of `verifier` in epoch `e`, counted from 0, and its place in the committee of every node.
    /// Reverts with NotSeated.
    function placesOf(uint64 e, address verifier, address[] calldata nodes)
        external
        view
        returns (uint256 seat, Place[] memory places);

    /// @notice Size of the committee of every node. Reverts with SeedNotFixed.
    function sizesOf(uint64 e, address[] calldata nodes) external view returns (uint256[] memory sizes);

    /// @notice Reverts with SeedNotFixed or NotSeated unless `verifier` may be drawn for epoch `e`.
    function checkSeated(uint64 e, address verifier) external view;
}
