// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {AccessControl} from "@openzeppelin/contracts/access/AccessControl.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {ERC20Burnable} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Burnable.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ReentrancyGuard} from "@openzeppelin/contracts/utils/ReentrancyGuard.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";
import {EpochClock} from "./EpochClock.sol";
import {ISessionEscrow} from "./interfaces/ISessionEscrow.sol";

/// @title EarningsLedger
/// @notice Mixin of the escrow: what settled payments brought to nodes and to the protocol, and how it is taken out.
abstract contract EarningsLedger is ISessionEscrow, EpochClock, AccessControl, ReentrancyGuard {
    using SafeERC20 for IERC20;
    using SafeCast for uint256;

    /// @dev Credits of a node, in one slot. Work is kept for the newest epoch with credits and the one before it.
    struct Account {
        uint96 owed;
        uint64 workGwei;
        uint64 previousWorkGwei;
        uint32 epoch;
    }

    /// @dev Sums, in one slot. Volumes of older epochs move to the archive when the epoch changes.
    struct Sums {
        uint128 fees;
        uint96 volume;
        uint32 epoch;
    }

    uint16 public constant MAX_FEE_BPS = 2_000;
    uint256 internal constant BPS = 10_000;
    uint256 private constant GWEI = 1e9;

    /// @notice The token paid with.
    IERC20 public immutable token;

    /// @dev These share their slot with the entry switch.
    uint16 private _feeBps;
    uint16 private _nextFeeBps;
    uint64 private _nextFeeFrom;
    Sums private _sums;
    mapping(address node => Account) private _accounts;
    mapping(uint64 epoch => uint256) private _volumes;

    constructor(IERC20 token_, uint16 feeBps_, address admin) {
        _checkFee(feeBps_);
        token = token_;
        _feeBps = feeBps_;
        _grantRole(DEFAULT_ADMIN_ROLE, admin);
    }

    /// @inheritdoc ISessionEscrow
    function withdrawFees(address to) external nonReentrant {
        // INVARIANT: credits do not vanish.
        require(to != address(0) && to != address(this), InvalidReceiver());
        Account storage a = _accounts[msg.sender];
        uint96 amount = a.owed;
        // INVARIANT: there is something to pay.
        require(amount != 0, ZeroAmount());
        a.owed = 0;
        token.safeTransfer(to, amount);
        emit FeesWithdrawn(msg.sender, to, amount);
    }

    /// @inheritdoc ISessionEscrow
    function sweepProtocolFees() external nonReentrant {
        uint128 amount = _sums.fees;
        // INVARIANT: there is something to burn.
        require(amount != 0, ZeroAmount());
        _sums.fees = 0;
        ERC20Burnable(address(token)).burn(amount);
        emit ProtocolFeesBurned(amount);
    }

    /// @inheritdoc ISessionEscrow
    function setFeeBps(uint16 next) external onlyRole(DEFAULT_ADMIN_ROLE) {
        _checkFee(next);
        uint16 current = feeBps();
        uint64 from = currentEpoch() + 1;
        _feeBps = current;
        _nextFeeBps = next;
        _nextFeeFrom = from;
        emit FeeScheduled(current, next, from);
    }

    // ------------------------------------------------------------------------------------------------------ views

    /// @inheritdoc ISessionEscrow
    function feeBps() public view returns (uint16) {
        return _nextFeeFrom != 0 && _nextFeeFrom <= currentEpoch() ? _nextFeeBps : _feeBps;
    }

    /// @inheritdoc ISessionEscrow
    function owedOf(address node) external view returns (uint256) {
        return _accounts[node].owed;
    }

    /// @inheritdoc ISessionEscrow
    function workOf(uint64 e, address node) external view returns (uint256) {
        Account memory a = _accounts[node];
        if (e == a.epoch) return a.workGwei * GWEI;
        if (uint256(e) + 1 == a.epoch) return a.previousWorkGwei * GWEI;
        return 0;
    }

    /// @inheritdoc ISessionEscrow
    function volumeOf(uint64 e) external view returns (uint256) {
        return e == _sums.epoch ? _sums.volume : _volumes[e];
    }

    /// @inheritdoc ISessionEscrow
    function protocolFees() external view returns (uint256) {
        return _sums.fees;
    }

    // --------------------------------------------------------------------------------------------------- internal

    /// @dev The last node gets what rounding leaves.
    function _creditNodes(SessionKey calldata key, uint256 net, uint64 epoch) internal {
        uint256 last = key.nodes.length - 1;
        uint256 rest = net;
        for (uint256 i; i < last; ++i) {
            uint256 part = (net * key.shares[i]) / BPS;
            rest -= part;
            _credit(key.nodes[i], part, epoch);
        }
        _credit(key.nodes[last], rest, epoch);
    }

    function _creditProtocol(uint256 paid, uint256 fee, uint64 epoch) internal {
        Sums memory sums = _sums;
        if (sums.epoch != epoch) {
            if (sums.volume != 0) _volumes[sums.epoch] = sums.volume;
            sums.volume = 0;
            sums.epoch = uint256(epoch).toUint32();
        }
        sums.fees = (uint256(sums.fees) + fee).toUint128();
        sums.volume = (uint256(sums.volume) + paid).toUint96();
        _sums = sums;
    }

    function _credit(address node, uint256 amount, uint64 epoch) private {
        Account memory a = _accounts[node];
        if (a.epoch != epoch) {
            a.previousWorkGwei = uint256(a.epoch) + 1 == epoch ? a.workGwei : 0;
            a.workGwei = 0;
            a.epoch = uint256(epoch).toUint32();
        }
        a.owed = (uint256(a.owed) + amount).toUint96();
        a.workGwei = (uint256(a.workGwei) + amount / GWEI).toUint64();
        _accounts[node] = a;
    }

    function _checkFee(uint256 fee) private pure {
        // INVARIANT: nodes keep at least four fifths.
        require(fee <= MAX_FEE_BPS, FeeTooHigh(fee, MAX_FEE_BPS));
    }
}
