// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {AccessControl} from "@openzeppelin/contracts/access/AccessControl.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {ERC20Burnable} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Burnable.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ReentrancyGuard} from "@openzeppelin/contracts/utils/ReentrancyGuard.sol";
import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";
import {IStakeVault} from "./interfaces/IStakeVault.sol";
import {PermitLib} from "./libraries/PermitLib.sol";

/// @title StakeVault
/// @notice Stake of nodes and verifiers. Slashers take from it, and nobody else can stop or delay a withdrawal.
contract StakeVault is IStakeVault, AccessControl, ReentrancyGuard {
    using SafeERC20 for IERC20;
    using SafeCast for uint256;

    bytes32 public constant SLASHER_ROLE = keccak256("SLASHER_ROLE");
    /// @dev Read by every contract with an entry switch.
    bytes32 public constant GUARDIAN_ROLE = keccak256("GUARDIAN_ROLE");

    uint256 public constant MAX_REWARD_BPS = 5_000;
    uint40 public constant MIN_UNBONDING = 1;
    uint40 public constant MAX_UNBONDING = 365 days;
    uint8 private constant FLAG_JAILED = 1;
    uint256 private constant BPS = 10_000;

    /// @notice The token staked.
    IERC20 public immutable token;
    /// @inheritdoc IStakeVault
    uint40 public immutable unbondingPeriod;

    mapping(address operator => Stake) private _stakes;
    mapping(address operator => mapping(address sponsor => bool)) private _sponsors;
    mapping(address operator => uint40) private _jailedUntil;
    uint128 private _totalActive;
    uint128 private _totalUnbonding;

    constructor(IERC20 token_, uint40 unbondingPeriod_, address admin) {
        // INVARIANT: nobody leaves in the block of the offence, and nobody is held for ever.
        require(
            unbondingPeriod_ >= MIN_UNBONDING && unbondingPeriod_ <= MAX_UNBONDING,
            UnbondingPeriodOutOfBounds(unbondingPeriod_, MIN_UNBONDING, MAX_UNBONDING)
        );
        token = token_;
        unbondingPeriod = unbondingPeriod_;
        _grantRole(DEFAULT_ADMIN_ROLE, admin);
        _grantRole(GUARDIAN_ROLE, admin);
    }

    /// @inheritdoc IStakeVault
    function stake(uint256 amount) external nonReentrant {
        _stake(msg.sender, amount);
    }

    /// @inheritdoc IStakeVault
    function stakeWithPermit(uint256 amount, uint256 deadline, uint8 v, bytes32 r, bytes32 s) external nonReentrant {
        PermitLib.tryPermit(token, msg.sender, amount, deadline, v, r, s);
        _stake(msg.sender, amount);
    }

    /// @inheritdoc IStakeVault
    function setSponsor(address sponsor, bool ok) external {
        _sponsors[msg.sender][sponsor] = ok;
        emit SponsorSet(msg.sender, sponsor, ok);
    }

    /// @inheritdoc IStakeVault
    function stakeFor(address operator, uint256 amount) external nonReentrant {
        // INVARIANT: third parties change nobody's stake uninvited.
        require(_sponsors[operator][msg.sender], SponsorNotAllowed(operator, msg.sender));
        _stake(operator, amount);
    }

    /// @inheritdoc IStakeVault
    function unbond(uint256 amount) external {
        // INVARIANT: the clock restarts only for a real amount.
        require(amount != 0, ZeroAmount());
        Stake storage s = _stakes[msg.sender];
        // INVARIANT: unbonding never exceeds what was active.
        require(amount <= s.active, InsufficientStake(amount, s.active));
        uint256 readyAt = block.timestamp + unbondingPeriod;
        // amount <= active < 2^96, and active + unbonding <= the token supply.
        s.active -= uint96(amount);
        s.unbonding = (uint256(s.unbonding) + amount).toUint96();
        s.readyAt = readyAt.toUint40();
        _totalActive -= uint128(amount);
        _totalUnbonding += uint128(amount);
        emit UnbondStarted(msg.sender, amount, readyAt);
    }

    /// @inheritdoc IStakeVault
    function cancelUnbond() external {
        Stake storage s = _stakes[msg.sender];
        uint96 amount = s.unbonding;
        // INVARIANT: there is something to return.
        require(amount != 0, ZeroAmount());
        s.unbonding = 0;
        s.readyAt = 0;
        s.active = (uint256(s.active) + amount).toUint96();
        _totalUnbonding -= amount;
        _totalActive += amount;
        emit UnbondCancelled(msg.sender, amount);
    }

    /// @inheritdoc IStakeVault
    function withdraw() external nonReentrant {
        Stake storage s = _stakes[msg.sender];
        uint96 amount = s.unbonding;
        // INVARIANT: there is something to pay.
        require(amount != 0, ZeroAmount());
        // INVARIANT: nothing leaves while a case is open.
        require(s.locks == 0, StakeLocked(s.locks));
        // INVARIANT: nothing leaves before the unbonding period is over.
        require(block.timestamp >= s.readyAt, NotReady(s.readyAt));
        s.unbonding = 0;
        s.readyAt = 0;
        _totalUnbonding -= amount;
        token.safeTransfer(msg.sender, amount);
        emit Withdrawn(msg.sender, amount);
    }

    /// @inheritdoc IStakeVault
    function slash(address op, uint256 amount, address beneficiary, uint256 rewardBps, bytes32 caseId)
        external
        onlyRole(SLASHER_ROLE)
        nonReentrant
        returns (uint256 slashed, uint256 reward)
    {
        // INVARIANT: accusing oneself costs at least half.
        require(rewardBps <= MAX_REWARD_BPS, RewardCutTooHigh(rewardBps, MAX_REWARD_BPS));
        uint256 fromActive;
        uint256 fromUnbonding;
        (fromActive, fromUnbonding) = _take(op, amount);
        slashed = fromActive + fromUnbonding;
        if (beneficiary != address(0) && beneficiary != address(this)) reward = (slashed * rewardBps) / BPS;
        if (reward != 0) token.safeTransfer(beneficiary, reward);
        if (slashed != reward) ERC20Burnable(address(token)).burn(slashed - reward);
        emit Slashed(op, caseId, fromActive, fromUnbonding, reward, slashed - reward);
    }

    /// @inheritdoc IStakeVault
    function lock(address op) external onlyRole(SLASHER_ROLE) {
        uint16 locks = ++_stakes[op].locks;
        emit Locked(op, locks);
    }

    /// @inheritdoc IStakeVault
    function unlock(address op) external onlyRole(SLASHER_ROLE) {
        uint16 locks = _stakes[op].locks;
        // INVARIANT: locks == open cases.
        require(locks != 0, NotLocked(op));
        _stakes[op].locks = --locks;
        emit Unlocked(op, locks);
    }

    /// @inheritdoc IStakeVault
    function jail(address op, uint40 until) external onlyRole(SLASHER_ROLE) {
        if (until <= _jailedUntil[op]) return;
        _jailedUntil[op] = until;
        _stakes[op].flags |= FLAG_JAILED;
        emit Jailed(op, until);
    }

    /// @inheritdoc IStakeVault
    function stakeOf(address op) external view returns (Stake memory) {
        return _stakes[op];
    }

    /// @inheritdoc IStakeVault
    function totals() external view returns (uint128 active, uint128 unbonding) {
        return (_totalActive, _totalUnbonding);
    }

    /// @inheritdoc IStakeVault
    function jailedUntil(address op) external view returns (uint40) {
        return _jailedUntil[op];
    }

    /// @inheritdoc IStakeVault
    function isSponsor(address operator, address sponsor) external view returns (bool) {
        return _sponsors[operator][sponsor];
    }

    function _stake(address operator, uint256 amount) private {
        // INVARIANT: there is something to stake.
        require(amount != 0, ZeroAmount());
        Stake storage s = _stakes[operator];
        uint256 active = uint256(s.active) + amount;
        s.active = active.toUint96();
        // amount <= active < 2^96.
        _totalActive += uint128(amount);
        token.safeTransferFrom(msg.sender, address(this), amount);
        emit Staked(operator, msg.sender, amount, active);
    }

    /// @dev Clamps, then takes pro rata; the part of the unbonding stake rounds up, so that leaving never pays.
    function _take(address op, uint256 amount) private returns (uint256 fromActive, uint256 fromUnbonding) {
        Stake storage s = _stakes[op];
        uint256 unbonding = s.unbonding;
        uint256 total = uint256(s.active) + unbonding;
        uint256 slashed = Math.min(amount, total);
        if (slashed == 0) return (0, 0);
        // slashed <= total < 2^97 and unbonding < 2^96: no overflow; the result is <= both slashed and unbonding.
        fromUnbonding = Math.ceilDiv(slashed * unbonding, total);
        fromActive = slashed - fromUnbonding;
        s.active -= uint96(fromActive);
        s.unbonding -= uint96(fromUnbonding);
        if (s.unbonding == 0) s.readyAt = 0;
        _totalActive -= uint128(fromActive);
        _totalUnbonding -= uint128(fromUnbonding);
    }
}
