// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

/// @title Draw
/// @notice Committees drawn without replacement: a partial Fisher-Yates shuffle of the seats.
library Draw {
    /// @notice Draws up to `size` distinct verifiers for `node`.
    /// @dev Step i swaps seat i with seat i + uint(keccak256(abi.encode(keccak256(abi.encode(seed, node)), i))) % (n - i),
    /// where the n seats are `seats` without the node itself, in their order.
    function draw(bytes32 seed, address node, address[] memory seats, uint256 size)
        internal
        pure
        returns (address[] memory members)
    {
        uint256 n = seats.length;
        address[] memory pool = new address[](n);
        uint256 eligible;
        for (uint256 i; i < n; ++i) {
            if (seats[i] != node) pool[eligible++] = seats[i];
        }
        if (size > eligible) size = eligible;
        members = new address[](size);
        bytes32 h = keccak256(abi.encode(seed, node));
        for (uint256 i; i < size; ++i) {
            uint256 j = i + uint256(keccak256(abi.encode(h, i))) % (eligible - i);
            members[i] = pool[j];
            pool[j] = pool[i];
        }
    }

    /// @notice Size of the committee of `node`, without drawing it.
    function sizeFor(address node, address[] memory seats, uint256 size) internal pure returns (uint256) {
        uint256 eligible = seats.length;
        for (uint256 i; i < seats.length; ++i) {
            if (seats[i] == node) {
                --eligible;
                break;
            }
        }
        return size < eligible ? size : eligible;
    }

    /// @notice Position of `verifier` in a committee; its length when the verifier is not in it.
    function positionOf(address[] memory members, address verifier) internal pure returns (uint256 i) {
        while (i < members.length && members[i] != verifier) ++i;
    }
}
