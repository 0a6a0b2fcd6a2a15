// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {AccessControl} from "@openzeppelin/contracts/access/AccessControl.sol";
import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {ERC20Burnable} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Burnable.sol";
import {ERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Permit.sol";
import {IERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/IERC20Permit.sol";
import {IEfedToken} from "./interfaces/IEfedToken.sol";

/// @title EfedToken
/// @notice Capped ERC-20 with permits and burning. No pause, no blacklist, no fee on transfer.
contract EfedToken is IEfedToken, ERC20Permit, ERC20Burnable, AccessControl {
    bytes32 public constant MINTER_ROLE = keccak256("MINTER_ROLE");

    /// @inheritdoc IEfedToken
    uint256 public immutable cap;

    constructor(address admin, uint256 cap_, address initialHolder, uint256 initialSupply)
        ERC20("eFedLLM", "EFED")
        ERC20Permit("eFedLLM")
    {
        cap = cap_;
        _grantRole(DEFAULT_ADMIN_ROLE, admin);
        _mintCapped(initialHolder, initialSupply);
    }

    /// @inheritdoc IEfedToken
    function mint(address to, uint256 amount) external onlyRole(MINTER_ROLE) {
        _mintCapped(to, amount);
    }

    /// @inheritdoc IEfedToken
    function burn(uint256 amount) public override(IEfedToken, ERC20Burnable) {
        super.burn(amount);
    }

    /// @inheritdoc IERC20Permit
    function nonces(address owner) public view override(IERC20Permit, ERC20Permit) returns (uint256) {
        return super.nonces(owner);
    }

    function _mintCapped(address to, uint256 amount) private {
        uint256 headroom = cap - totalSupply();
        // INVARIANT: totalSupply <= cap.
        require(amount <= headroom, CapExceeded(cap, amount));
        _mint(to, amount);
    }
}
