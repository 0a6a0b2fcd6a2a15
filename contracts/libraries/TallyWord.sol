// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

/// @title TallyWord
/// @notice Verdicts of a committee about one node and epoch, in one slot.
/// @dev Bits 0..14: which members revealed. Bit 15: closed. Bits 16 * (i + 1) ..: verdict of member i.
/// A verdict is severe << 15 | failedUnits (7 bits) << 8 | passedUnits (8 bits).
library TallyWord {
    uint256 internal constant MAX_MEMBERS = 15;
    uint256 private constant MASK = 0x7FFF;
    uint256 private constant CLOSED = 0x8000;

    /// @notice Whether member `i` has revealed.
    function has(uint256 word, uint256 i) internal pure returns (bool) {
        return (word >> i) & 1 != 0;
    }

    /// @notice Adds the verdict of member `i`, who has not revealed yet.
    function add(uint256 word, uint256 i, uint16 verdict) internal pure returns (uint256) {
        return word | (uint256(1) << i) | (uint256(verdict) << (16 * (i + 1)));
    }

    /// @notice Verdict of member `i`.
    function verdictOf(uint256 word, uint256 i) internal pure returns (uint16) {
        return uint16(word >> (16 * (i + 1)));
    }

    /// @notice Closes the tally.
    function close(uint256 word) internal pure returns (uint256) {
        return word | CLOSED;
    }

    /// @notice Whether the tally is closed.
    function isClosed(uint256 word) internal pure returns (bool) {
        return word & CLOSED != 0;
    }

    /// @notice How many members revealed.
    function reveals(uint256 word) internal pure returns (uint256 n) {
        for (uint256 mask = word & MASK; mask != 0; mask &= mask - 1) {
            ++n;
        }
    }

    /// @notice Lower medians of the passed and of the failed units, and the number of severe verdicts.
    function outcome(uint256 word) internal pure returns (uint16 passed, uint16 failed, uint256 severe) {
        uint16[] memory p = new uint16[](MAX_MEMBERS);
        uint16[] memory f = new uint16[](MAX_MEMBERS);
        uint256 n;
        for (uint256 i; i < MAX_MEMBERS; ++i) {
            if (!has(word, i)) continue;
            uint16 v = verdictOf(word, i);
            _insert(p, n, passedUnits(v));
            _insert(f, n, failedUnits(v));
            if (isSevere(v)) ++severe;
            ++n;
        }
        if (n != 0) (passed, failed) = (p[(n - 1) / 2], f[(n - 1) / 2]);
    }

    /// @notice Units that passed, of a verdict.
    function passedUnits(uint16 verdict) internal pure returns (uint16) {
        return verdict & 0xFF;
    }

    /// @notice Units that failed, of a verdict.
    function failedUnits(uint16 verdict) internal pure returns (uint16) {
        return (verdict >> 8) & 0x7F;
    }

    /// @notice Whether a verdict calls the failure severe.
    function isSevere(uint16 verdict) internal pure returns (bool) {
        return verdict >> 15 != 0;
    }

    /// @dev Inserts into the sorted first n entries.
    function _insert(uint16[] memory a, uint256 n, uint16 x) private pure {
        while (n != 0 && a[n - 1] > x) {
            a[n] = a[n - 1];
            --n;
        }
        a[n] = x;
    }
}
