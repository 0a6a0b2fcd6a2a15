// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {IAccessControl} from "@openzeppelin/contracts/access/IAccessControl.sol";
import {IEntryPause} from "./interfaces/IEntryPause.sol";

/// @title EntryPause
/// @notice Mixin: the guardian closes the entry of a contract. Exits, settlements and claims have no such switch.
/// @dev Guardians are kept in one place for all contracts: GUARDIAN_ROLE on the stake vault.
abstract contract EntryPause is IEntryPause {
    bytes32 internal constant GUARDIAN_ROLE = keccak256("GUARDIAN_ROLE");

    /// @dev Keeps the guardian role.
    IAccessControl private immutable _authority;

    /// @inheritdoc IEntryPause
    bool public entryPaused;

    modifier whenEntryOpen() {
        // INVARIANT: only functions that bring something in carry this modifier.
        require(!entryPaused, EntryIsPaused());
        _;
    }

    constructor(address authority_) {
        _authority = IAccessControl(authority_);
    }

    /// @inheritdoc IEntryPause
    function setEntryPaused(bool paused) external {
        // INVARIANT: only a guardian closes or opens the entry.
        require(_authority.hasRole(GUARDIAN_ROLE, msg.sender), NotGuardian(msg.sender));
        entryPaused = paused;
        emit EntryPauseSet(paused, msg.sender);
    }
}
