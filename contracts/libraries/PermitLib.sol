// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {IERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/IERC20Permit.sol";

/// @title PermitLib
/// @notice Permits that cannot be used to block their owner.
library PermitLib {
    /// @notice Submits a permit for this contract and goes on if it fails: whoever saw the permit may have submitted it
    /// first, and the transfer that follows fails anyway when the allowance is missing.
    function tryPermit(IERC20 token, address owner, uint256 amount, uint256 deadline, uint8 v, bytes32 r, bytes32 s)
        internal
    {
        try IERC20Permit(address(token)).permit(owner, address(this), amount, deadline, v, r, s) {} catch {}
    }
}
