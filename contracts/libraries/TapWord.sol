// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {TallyWord} from "./TallyWord.sol";

/// @title TapWord
/// @notice Fingerprints of a committee about one node and epoch: eight members share a slot. Beside a pass of the tap
/// digest, beside a failure of the fault digest.
/// @dev A fingerprint is the lower 32 bits of a digest: who did not compute hits it with chance 2^-32. 0 claims nothing.
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

    /// @notice The fingerprint other than 0 that at least `needed` of `members` revealed with a pass; 0 when there is
    /// none.
    /// @dev `needed` is more than half of the members, so that there is at most one.
    function agreed(uint256 low, uint256 high, uint256 word, uint256 members, uint256 needed)
        internal
        pure
        returns (uint32)
    {
        if (low | high == 0) return 0;
        for (uint256 i; i + needed <= members; ++i) {
            uint32 print = printOf(low, high, i);
            if (print == 0) continue;
            uint256 votes;
            for (uint256 j = i; j < members; ++j) {
                if (printOf(low, high, j) == print && passes(word, j)) ++votes;
            }
            if (votes >= needed) return print;
        }
        return 0;
    }

    /// @notice The tally without the severe failures that carry the fingerprint `print`, which is not 0, and their number.
    /// @dev A lesser failure stays: work at the edge of a tolerance, which some verifiers pass and some fail, must cost
    /// the node, or it could be made on purpose to have verifiers contradict each other.
    function forgive(uint256 low, uint256 high, uint256 word, uint256 members, uint32 print)
        internal
        pure
        returns (uint256 cleared, uint256 n)
    {
        cleared = word;
        for (uint256 i; i < members; ++i) {
            if (printOf(low, high, i) != print || !TallyWord.isSevere(TallyWord.verdictOf(word, i))) continue;
            cleared = TallyWord.forgive(cleared, i);
            ++n;
        }
    }

    /// @notice Whether member `i` revealed, and no failure.
    function passes(uint256 word, uint256 i) internal pure returns (bool) {
        return TallyWord.has(word, i) && TallyWord.failedUnits(TallyWord.verdictOf(word, i)) == 0;
    }
}
