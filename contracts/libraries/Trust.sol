// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {IVerifierCommitteeTypes} from "../interfaces/IVerifierCommittee.sol";

/// @title Trust
/// @notice The trust rule, in integers: decayed masses of passed and failed audits against a prior.
library Trust {
    uint256 internal constant PPM = 1e6;
    /// @dev Weight of a unit: a tenth of a full audit.
    uint64 internal constant UNIT = 1e5;
    /// @dev A failure counts as this many passes, because honest nodes practically never fail.
    uint64 internal constant FAIL_FACTOR = 50;
    /// @dev As much as twenty full audits failed, on top of all passes lost.
    uint64 internal constant CONVICTION = 1e9;
    /// @dev 64 epochs leave 36 % of a mass; more would not change a standing and would cost gas.
    uint256 internal constant MAX_DECAY_STEPS = 64;

    /// @notice Applies the decay between the stored epoch and `e`: a -= a >> 6 and b -= b >> 6 for each epoch, at most 64.
    function decay(IVerifierCommitteeTypes.TrustState memory t, uint256 e) internal pure {
        if (e <= t.epoch) return;
        uint256 steps = e - t.epoch;
        if (steps > MAX_DECAY_STEPS) steps = MAX_DECAY_STEPS;
        uint64 a = t.alpha;
        uint64 b = t.beta;
        // Masses under 64 no longer decay, so the loop may stop there.
        for (; steps != 0 && (a | b) >= 64; --steps) {
            a -= a >> 6;
            b -= b >> 6;
        }
        t.alpha = a;
        t.beta = b;
    }

    /// @notice Applies a conviction that waits, once its epoch is over, to the masses as they were then.
    function settle(IVerifierCommitteeTypes.TrustState memory t, uint256 current) internal pure {
        uint256 convicted = t.convictedIn;
        if (current <= convicted) return;
        // Not before: what is audited of an epoch follows from trust, and has to be the same for all who audit it.
        decay(t, convicted);
        t.alpha = 0;
        t.beta += CONVICTION;
        if (t.epoch < convicted) t.epoch = uint32(convicted);
        t.convictedIn = 0;
    }

    /// @notice Counts a final verdict. Failures void the passes of the same epoch.
    function count(IVerifierCommitteeTypes.TrustState memory t, uint16 passed, uint16 failed) internal pure {
        if (failed == 0) {
            t.alpha += UNIT * passed;
        } else {
            t.alpha >>= 2;
            t.beta += FAIL_FACTOR * UNIT * failed;
        }
    }

    /// @notice 1e6 * alpha / (alpha + beta + priorMass), ppm.
    function score(IVerifierCommitteeTypes.TrustState memory t, uint256 priorMass) internal pure returns (uint256) {
        return (PPM * t.alpha) / (uint256(t.alpha) + t.beta + priorMass);
    }
}
