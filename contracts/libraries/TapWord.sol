// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

/// @title TapWord
/// @notice Fingerprints of the tap digests that a committee revealed about one node and epoch. Eight members share a
/// slot. Only members that passed the node have one.
/// @dev A fingerprint is the lower 32 bits of a digest. 0 claims nothing. Every digest is committed before the first
/// one is revealed, so a verifier that did not compute has one blind guess and hits with chance 2^-32. 32 bits would
/// not stop somebody who searches for two digests with one fingerprint. Nobody gains by that: a fingerprint never
/// excuses a failure.
library TapWord {
    /// @dev Lane i % 8 of word i / 8 belongs to member i.
    struct Words {
        uint256[2] lanes;
    }

    uint256 private constant LANES = 8;
    uint256 private constant LANE_BITS = 32;

    /// @notice What is kept of a digest.
    function fingerprint(bytes32 digest) internal pure returns (uint32) {
        return uint32(uint256(digest));
    }

    /// @notice Records a fingerprint other than 0 for member `i`, who has none yet.
    function set(Words storage self, uint256 i, uint32 print) internal {
        self.lanes[i / LANES] |= uint256(print) << (LANE_BITS * (i % LANES));
    }

    /// @notice Both words; the second is read only for committees that reach into it.
    function load(Words storage self, uint256 members) internal view returns (uint256 low, uint256 high) {
        low = self.lanes[0];
        if (members > LANES) high = self.lanes[1];
    }

    /// @notice The fingerprint of member `i`; 0 when there is none.
    function printOf(uint256 low, uint256 high, uint256 i) internal pure returns (uint32) {
        return uint32((i < LANES ? low : high) >> (LANE_BITS * (i % LANES)));
    }

    /// @notice The fingerprint other than 0 that at least `needed` of `members` revealed; 0 when there is none.
    /// @dev `needed` is more than half of the members, so that there is at most one.
    function agreed(uint256 low, uint256 high, uint256 members, uint256 needed) internal pure returns (uint32) {
        if (low | high == 0) return 0;
        for (uint256 i; i + needed <= members; ++i) {
            uint32 print = printOf(low, high, i);
            if (print == 0) continue;
            uint256 votes;
            for (uint256 j = i; j < members; ++j) {
                if (printOf(low, high, j) == print) ++votes;
            }
            if (votes >= needed) return print;
        }
        return 0;
    }
}
