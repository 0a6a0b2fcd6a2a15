// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {IERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/IERC20Permit.sol";

/// @title IEfedToken
/// @notice The token of the network: staked, paid with, minted as rewards, burned by slashing and protocol fees.
interface IEfedToken is IERC20, IERC20Permit {
    /// @notice Minting `attempted` would lift the supply above `cap`.
    /// @param cap Most tokens that may exist, wei.
    /// @param attempted Supply after the call, wei.
    error CapExceeded(uint256 cap, uint256 attempted);

    /// @notice Most tokens that may exist at a time, wei.
    function cap() external view returns (uint256);

    /// @notice Creates `amount` for `to`. MINTER_ROLE only.
    function mint(address to, uint256 amount) external;

    /// @notice Destroys `amount` of the caller's tokens.
    function burn(uint256 amount) external;
}
