// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {ISeatRegistryErrors} from "../interfaces/ISeatRegistry.sol";
import {IVerifierCommitteeTypes} from "../interfaces/IVerifierCommittee.sol";

/// @title CommitteeParams
/// @notice Bounds of the committee's parameters: no vote of the admin can lift a slash above these or stop the audits.
library CommitteeParams {
    uint256 internal constant PPM = 1e6;
    uint256 internal constant MAX_THETA = 900_000;
    uint256 internal constant MIN_PRIOR_MASS = 1e5;
    uint256 internal constant MAX_PRIOR_MASS = 1e12;
    uint256 internal constant MIN_AUDIT_RATE = 1_000;
    uint256 internal constant BPS = 10_000;
    uint256 internal constant MAX_NO_REVEAL_BPS = 1_000;
    uint256 internal constant MAX_DEVIATION_BPS = 2_000;
    uint256 internal constant MIN_EXCLUSION = 2;
    uint256 internal constant MAX_EXCLUSION = 100_000;

    /// @notice Reverts with the first parameter that is out of bounds.
    function check(IVerifierCommitteeTypes.Params memory p) internal pure {
        _bound("theta", p.theta, 0, MAX_THETA);
        _bound("reentry", p.reentry, p.theta, MAX_THETA);
        _bound("priorMass", p.priorMass, MIN_PRIOR_MASS, MAX_PRIOR_MASS);
        _bound("pMin", p.pMin, MIN_AUDIT_RATE, PPM);
        _bound("pMax", p.pMax, p.pMin, PPM);
        _bound("slashFirstBps", p.slashFirstBps, 1, BPS);
        _bound("slashRepeatBps", p.slashRepeatBps, p.slashFirstBps, BPS);
        _bound("noRevealBps", p.noRevealBps, 0, MAX_NO_REVEAL_BPS);
        _bound("deviationBps", p.deviationBps, 0, MAX_DEVIATION_BPS);
        _bound("probationCapBps", p.probationCapBps, 1, BPS);
        _bound("exclusionEpochs", p.exclusionEpochs, MIN_EXCLUSION, MAX_EXCLUSION);
    }

    function _bound(bytes32 name, uint256 value, uint256 min, uint256 max) private pure {
        // INVARIANT: min <= value <= max.
        require(value >= min && value <= max, ISeatRegistryErrors.ParamOutOfBounds(name, value, min, max));
    }
}
