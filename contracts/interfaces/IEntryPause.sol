// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

/// @title IEntryPause
/// @notice A switch that closes the way in (registering, opening, taking a seat, posting) and never the way out.
interface IEntryPause {
    /// @notice The entry was opened or closed.
    /// @param paused Whether the entry is closed now.
    /// @param guardian Account that changed it.
    event EntryPauseSet(bool paused, address guardian);

    /// @notice The entry is closed for now; exits, settlements and claims are not.
    error EntryIsPaused();
    /// @notice Only a holder of GUARDIAN_ROLE on the stake vault may do this.
    /// @param caller Account that sent the transaction.
    error NotGuardian(address caller);

    /// @notice Whether the entry is closed.
    function entryPaused() external view returns (bool);

    /// @notice Opens or closes the entry. Guardian only.
    function setEntryPaused(bool paused) external;
}
