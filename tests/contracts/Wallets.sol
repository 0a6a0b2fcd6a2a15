// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

/// @notice A wallet that is a contract: whatever its owner signed is its own, until it refuses everything.
contract Wallet {
    address private immutable _owner;
    bool public refuses;

    constructor(address owner) {
        _owner = owner;
    }

    function refuse(bool all) external {
        refuses = all;
    }

    function isValidSignature(bytes32 digest, bytes calldata sig) external view returns (bytes4) {
        if (refuses) return bytes4(0);
        (bytes32 r, bytes32 s, uint8 v) = (bytes32(sig[:32]), bytes32(sig[32:64]), uint8(sig[64]));
        return ecrecover(digest, v, r, s) == _owner ? this.isValidSignature.selector : bytes4(0);
    }
}

/// @notice Calls everything its own signature.
contract YesWallet {
    function isValidSignature(bytes32, bytes calldata) external pure returns (bytes4) {
        return this.isValidSignature.selector;
    }
}

/// @notice Calls nothing its own signature.
contract NoWallet {
    function isValidSignature(bytes32, bytes calldata) external pure returns (bytes4) {
        return bytes4(0);
    }
}
