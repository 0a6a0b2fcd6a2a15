// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";
import {BitMaps} from "@openzeppelin/contracts/utils/structs/BitMaps.sol";
import {EpochClock} from "./EpochClock.sol";
import {IEfedToken} from "./interfaces/IEfedToken.sol";
import {IRewardPool} from "./interfaces/IRewardPool.sol";
import {ISessionEscrow} from "./interfaces/ISessionEscrow.sol";
import {IStakeVault} from "./interfaces/IStakeVault.sol";
import {IVerifierCommittee} from "./interfaces/IVerifierCommittee.sol";

/// @title RewardPool
/// @notice Emission of an epoch, minted when claimed: what nobody claims, and the dust of divisions, never exists.
/// @dev An epoch mints at most phiBps of what clients paid in it, while the escrow burns its feeBps of that. With
/// phiBps <= feeBps somebody who is client, node, verifier and treasury at once still loses by paying himself. A higher
/// phiBps subsidises the start of a network; then only the stake cap bounds what such a circle takes in an epoch.
contract RewardPool is IRewardPool, EpochClock {
    using BitMaps for BitMaps.BitMap;

    uint256 private constant BPS = 10_000;
    uint256 private constant PPM = 1e6;
    uint256 private constant GWEI = 1e9;
    uint8 private constant STANDING_ACTIVE = 2;

    uint8 private constant KIND_NODE = 0;
    uint8 private constant KIND_VERIFIER = 1;
    uint8 private constant KIND_TREASURY = 2;

    /// @dev Four epochs share a slot of a node: bit 63 of a lane says claimed, the rest is the weight in gwei.
    uint256 private constant LANES = 4;
    uint256 private constant LANE_BITS = 64;
    uint256 private constant CLAIMED = 1 << 63;

    /// @notice The token minted; this contract needs its MINTER_ROLE.
    IEfedToken public immutable token;
    /// @notice Keeps trust and points.
    IVerifierCommittee public immutable committee;
    /// @notice Keeps work and volume.
    ISessionEscrow public immutable escrow;
    /// @notice Keeps stakes.
    IStakeVault public immutable vault;
    /// @inheritdoc IRewardPool
    address public immutable treasury;

    Params private _params;
    mapping(address node => mapping(uint256 group => uint256 lanes)) private _weights;
    mapping(uint64 epoch => uint256 gwei_) private _totalWeights;
    mapping(address verifier => BitMaps.BitMap) private _claimedByVerifier;
    BitMaps.BitMap private _claimedByTreasury;

    constructor(
        IEfedToken token_,
        IVerifierCommittee committee_,
        ISessionEscrow escrow_,
        IStakeVault vault_,
        uint64 genesis_,
        uint32 epochLength_,
        Params memory params_,
        address treasury_
    ) EpochClock(genesis_, epochLength_) {
        _bound("halvingEpochs", params_.halvingEpochs, 1, type(uint32).max);
        _bound("phiBps", params_.phiBps, 0, BPS);
        _bound("serversBps", params_.serversBps, 0, BPS);
        _bound("verifiersBps", params_.verifiersBps, 0, BPS - params_.serversBps);
        _bound("stakeCapBps", params_.stakeCapBps, 1, type(uint16).max);
        // INVARIANT: the treasury's share goes to somebody.
        require(treasury_ != address(0), InvalidTreasury());
        token = token_;
        committee = committee_;
        escrow = escrow_;
        vault = vault_;
        treasury = treasury_;
        _params = params_;
    }

    /// @inheritdoc IRewardPool
    function weigh(uint64 e, address[] calldata nodes) external {
        uint64 current = currentEpoch();
        uint8 now_ = phase();
        // INVARIANT: weights are complete before anybody claims, and follow the final verdicts.
        require(current == uint256(e) + 1 && now_ == PHASE_TALLY, NotWeighable(e, current, now_));
        uint256 stakeCap = _params.stakeCapBps;
        uint256 sum;
        for (uint256 i; i < nodes.length; ++i) {
            sum += _weigh(e, nodes[i], stakeCap);
        }
        if (sum != 0) _totalWeights[e] += sum;
    }

    /// @inheritdoc IRewardPool
    function claim(uint64[] calldata epochs) external {
        uint256 room = _room();
        uint256 sum;
        for (uint256 i; i < epochs.length; ++i) {
            uint64 e = epochs[i];
            _requireClaimable(e);
            uint256 amount = Math.min(_nodeReward(e, msg.sender), room - sum);
            if (amount == 0) continue;
            (uint256 group, uint256 shift) = _lane(e);
            _weights[msg.sender][group] |= CLAIMED << shift;
            emit RewardClaimed(e, msg.sender, KIND_NODE, amount);
            sum += amount;
        }
        _mint(msg.sender, sum);
    }

    /// @inheritdoc IRewardPool
    function claimVerifier(uint64[] calldata epochs) external {
        uint256 room = _room();
        uint256 sum;
        for (uint256 i; i < epochs.length; ++i) {
            uint64 e = epochs[i];
            _requireClaimable(e);
            uint256 amount = Math.min(_verifierReward(e, msg.sender), room - sum);
            if (amount == 0) continue;
            _claimedByVerifier[msg.sender].set(e);
            emit RewardClaimed(e, msg.sender, KIND_VERIFIER, amount);
            sum += amount;
        }
        _mint(msg.sender, sum);
    }

    /// @inheritdoc IRewardPool
    function claimTreasury(uint64[] calldata epochs) external {
        uint256 room = _room();
        uint256 sum;
        for (uint256 i; i < epochs.length; ++i) {
            uint64 e = epochs[i];
            _requireClaimable(e);
            uint256 amount = Math.min(_treasuryReward(e), room - sum);
            if (amount == 0) continue;
            _claimedByTreasury.set(e);
            emit RewardClaimed(e, treasury, KIND_TREASURY, amount);
            sum += amount;
        }
        _mint(treasury, sum);
    }

    /// @inheritdoc IRewardPool
    function emissionOf(uint64 e) external view returns (uint256) {
        return Math.min(_emission(e), _room());
    }

    /// @inheritdoc IRewardPool
    function weightOf(uint64 e, address node) external view returns (uint256) {
        return (_laneOf(e, node) & ~CLAIMED) * GWEI;
    }

    /// @inheritdoc IRewardPool
    function totalWeight(uint64 e) external view returns (uint256) {
        return _totalWeights[e] * GWEI;
    }

    /// @inheritdoc IRewardPool
    function claimable(uint64 e, address account) external view returns (uint256 amount) {
        if (e == 0 || currentEpoch() < uint256(e) + 2) return 0;
        amount = _nodeReward(e, account) + _verifierReward(e, account);
        if (account == treasury) amount += _treasuryReward(e);
    }

    /// @inheritdoc IRewardPool
    function params() external view returns (Params memory) {
        return _params;
    }

    /// @return added Weight recorded now, gwei.
    function _weigh(uint64 e, address node, uint256 stakeCap) private returns (uint256 added) {
        // INVARIANT: trust of the epoch is final before it weighs anything.
        require(!committee.isPending(e, node), NotFinalized(e, node));
        (uint256 group, uint256 shift) = _lane(e);
        if (_laneOf(e, node) != 0) return 0;
        uint256 work = escrow.workOf(e, node);
        uint256 trust = committee.trustOf(node);
        if (committee.standingOf(node) == STANDING_ACTIVE) {
            uint256 cap = (uint256(vault.stakeOf(node).active) * stakeCap) / BPS;
            added = Math.min(Math.min((work * trust) / PPM, cap) / GWEI, CLAIMED - 1);
        }
        if (added != 0) _weights[node][group] |= added << shift;
        emit Weighed(e, node, work, trust, added * GWEI);
    }

    function _mint(address to, uint256 amount) private {
        // INVARIANT: a claim pays.
        require(amount != 0, NothingToClaim(to));
        token.mint(to, amount);
    }

    /// @dev What may still be minted. Claims near the cap are cut to it, first come, first served, and do not get stuck.
    function _room() private view returns (uint256) {
        return token.cap() - token.totalSupply();
    }

    /// @dev Fixed once the epoch is over.
    function _emission(uint64 e) private view returns (uint256) {
        if (e == 0) return 0;
        uint256 scheduled = uint256(_params.e0) >> ((e - 1) / _params.halvingEpochs);
        return Math.min(scheduled, (escrow.volumeOf(e) * _params.phiBps) / BPS);
    }

    function _nodeReward(uint64 e, address node) private view returns (uint256) {
        uint256 weight = _laneOf(e, node);
        if (weight == 0 || weight & CLAIMED != 0) return 0;
        return (((_emission(e) * _params.serversBps) / BPS) * weight) / _totalWeights[e];
    }

    function _verifierReward(uint64 e, address verifier) private view returns (uint256) {
        uint256 points = committee.pointsOf(e, verifier);
        if (points == 0 || _claimedByVerifier[verifier].get(e)) return 0;
        return (((_emission(e) * _params.verifiersBps) / BPS) * points) / committee.totalPoints(e);
    }

    function _treasuryReward(uint64 e) private view returns (uint256) {
        if (_claimedByTreasury.get(e)) return 0;
        return (_emission(e) * (BPS - _params.serversBps - _params.verifiersBps)) / BPS;
    }

    function _requireClaimable(uint64 e) private view {
        uint64 current = currentEpoch();
        // INVARIANT: nothing is paid before weights and points are final.
        require(e != 0 && current >= uint256(e) + 2, NotClaimable(e, current));
    }

    function _laneOf(uint64 e, address node) private view returns (uint256) {
        (uint256 group, uint256 shift) = _lane(e);
        return (_weights[node][group] >> shift) & type(uint64).max;
    }

    function _lane(uint64 e) private pure returns (uint256 group, uint256 shift) {
        return (e / LANES, (e % LANES) * LANE_BITS);
    }

    function _bound(bytes32 name, uint256 value, uint256 min, uint256 max) private pure {
        // INVARIANT: min <= value <= max.
        require(value >= min && value <= max, ParamOutOfBounds(name, value, min, max));
    }
}
