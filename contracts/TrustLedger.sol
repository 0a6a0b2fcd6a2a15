// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {AccessControl} from "@openzeppelin/contracts/access/AccessControl.sol";
import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";
import {EpochClock} from "./EpochClock.sol";
import {IStakeVault} from "./interfaces/IStakeVault.sol";
import {IVerifierCommittee} from "./interfaces/IVerifierCommittee.sol";
import {CommitteeParams} from "./libraries/CommitteeParams.sol";
import {Trust} from "./libraries/Trust.sol";

/// @title TrustLedger
/// @notice Mixin of the committee: its parameters, the trust and standing of nodes, and what a final verdict does to them.
abstract contract TrustLedger is IVerifierCommittee, EpochClock, AccessControl {
    using SafeCast for uint256;
    using Trust for TrustState;

    uint256 internal constant BPS = 10_000;

    uint8 private constant EXCLUDED = 0;
    uint8 private constant PROBATION = 1;
    uint8 private constant ACTIVE = 2;

    /// @notice Where the stakes lie.
    IStakeVault public immutable vault;

    uint64 private _nextParamsFrom;
    /// @dev Which of the two versions is older: in force until the newer one is due.
    uint8 private _olderParams;
    Params[2] private _params;
    mapping(address node => TrustState) private _trust;

    constructor(IStakeVault vault_, Params memory params_, address admin) {
        CommitteeParams.check(params_);
        vault = vault_;
        _params[0] = params_;
        _grantRole(DEFAULT_ADMIN_ROLE, admin);
    }

    /// @inheritdoc IVerifierCommittee
    function setParams(Params memory next) external onlyRole(DEFAULT_ADMIN_ROLE) {
        CommitteeParams.check(next);
        uint256 current = _paramsIndex();
        uint64 from = currentEpoch() + 1;
        _olderParams = uint8(current);
        _params[1 - current] = next;
        _nextParamsFrom = from;
        emit ParamsScheduled(next, from);
    }

    // ------------------------------------------------------------------------------------------------------ views

    /// @inheritdoc IVerifierCommittee
    function params() public view returns (Params memory) {
        return _params[_paramsIndex()];
    }

    /// @inheritdoc IVerifierCommittee
    function trustOf(address node) public view returns (uint256) {
        return _scoreOf(_stateOf(node), params().priorMass);
    }

    /// @inheritdoc IVerifierCommittee
    function trustState(address node)
        external
        view
        returns (uint64 alpha, uint64 beta, uint32 epoch, uint16 offences, uint32 jailedUntil)
    {
        TrustState memory t = _stateOf(node);
        return (t.alpha, t.beta, t.epoch, t.offences, t.jailedUntil);
    }

    /// @inheritdoc IVerifierCommittee
    function standingOf(address node) external view returns (uint8) {
        return _standing(_stateOf(node), params());
    }

    /// @inheritdoc IVerifierCommittee
    function auditRate(address node) external view returns (uint256) {
        Params memory p = params();
        uint256 trust = _scoreOf(_stateOf(node), p.priorMass);
        return p.pMin + (uint256(p.pMax - p.pMin) * (Trust.PPM - trust)) / Trust.PPM;
    }

    /// @inheritdoc IVerifierCommittee
    function checkStanding(address[] calldata nodes_, uint256 value) external view {
        Params memory p = params();
        for (uint256 i; i < nodes_.length; ++i) {
            address node = nodes_[i];
            TrustState memory t = _stateOf(node);
            uint8 standing = _standing(t, p);
            // INVARIANT: an excluded node takes no sessions.
            require(standing != EXCLUDED, NodeExcluded(node, t.jailedUntil));
            if (standing == PROBATION) {
                uint256 cap = (uint256(vault.stakeOf(node).active) * p.probationCapBps) / BPS;
                // INVARIANT: what a node without trust can steal is small against its stake.
                require(value <= cap, ProbationCapExceeded(node, cap, value));
            }
        }
    }

    // --------------------------------------------------------------------------------------------------- internal

    /// @dev Excludes at once; the masses follow when the epoch is over (`Trust.settle`).
    function _convict(address node) internal returns (uint32 jailedUntil) {
        TrustState memory t = _stateOf(node);
        uint64 current = currentEpoch();
        t.convictedIn = uint256(current).toUint32();
        _exclude(t, current, false, true, params().exclusionEpochs);
        _trust[node] = t;
        jailedUntil = t.jailedUntil;
        vault.jail(node, epochStart(jailedUntil).toUint40());
        emit NodeConvicted(node, current, jailedUntil);
    }

    /// @dev Moves trust by a final verdict and punishes a failure. severe implies failed != 0.
    function _applyVerdict(uint64 e, address node, uint16 passed, uint16 failed, bool severe, Params memory p)
        internal
    {
        TrustState memory t = _stateOf(node);
        t.decay(e);
        uint256 trustBefore = t.score(p.priorMass);
        t.count(passed, failed);
        t.epoch = uint256(e).toUint32();
        uint256 trustAfter = t.score(p.priorMass);
        emit TrustUpdated(node, e, passed, failed, trustBefore, trustAfter);
        if (failed != 0) {
            _exclude(t, e, trustAfter < p.theta, severe, p.exclusionEpochs);
        } else if (t.jailedUntil != 0 && t.jailedUntil <= currentEpoch() && trustAfter >= p.reentry) {
            // The exclusion is over and trust is back: theta counts again instead of the higher re-entry mark.
            t.jailedUntil = 0;
        }
        _trust[node] = t;
        if (failed != 0) _punish(e, node, t, severe, p);
    }

    /// @dev Rounds against the offender; the vault clamps and burns all of it.
    function _slash(address op, uint256 bps, bytes32 kind, uint64 e) internal returns (uint256 slashed) {
        IStakeVault.Stake memory s = vault.stakeOf(op);
        uint256 amount = Math.ceilDiv((uint256(s.active) + s.unbonding) * bps, BPS);
        (slashed,) = vault.slash(op, amount, address(0), 0, keccak256(abi.encode(kind, e, op)));
    }

    /// @dev Updates `t` in memory.
    function _exclude(TrustState memory t, uint64 e, bool untrusted, bool severe, uint256 epochs) private pure {
        if (untrusted || severe) {
            uint256 until = e + epochs;
            if (until > t.jailedUntil) t.jailedUntil = until.toUint32();
        }
        if (severe && t.offences != type(uint16).max) ++t.offences;
    }

    function _punish(uint64 e, address node, TrustState memory t, bool severe, Params memory p) private {
        uint256 slashed;
        if (severe) {
            slashed = _slash(node, t.offences == 1 ? p.slashFirstBps : p.slashRepeatBps, "severe", e);
            vault.jail(node, epochStart(t.jailedUntil).toUint40());
        }
        emit NodeFailed(node, e, severe, slashed, t.jailedUntil);
    }

    function _paramsIndex() private view returns (uint256) {
        uint64 from = _nextParamsFrom;
        bool due = from != 0 && from <= currentEpoch();
        return due ? 1 - _olderParams : _olderParams;
    }

    function _standing(TrustState memory t, Params memory p) private view returns (uint8) {
        if (t.jailedUntil > currentEpoch()) return EXCLUDED;
        uint256 mark = t.jailedUntil == 0 ? p.theta : p.reentry;
        return _scoreOf(t, p.priorMass) >= mark ? ACTIVE : PROBATION;
    }

    /// @dev The last ended epoch is the newest whose work can be judged, so decay runs up to it.
    function _scoreOf(TrustState memory t, uint256 priorMass) private view returns (uint256) {
        t.decay(currentEpoch() - 1);
        return t.score(priorMass);
    }

    function _stateOf(address node) private view returns (TrustState memory t) {
        t = _trust[node];
        if (t.convictedIn != 0) t.settle(currentEpoch());
    }
}
