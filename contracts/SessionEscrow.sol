// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {SignatureChecker} from "@openzeppelin/contracts/utils/cryptography/SignatureChecker.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";
import {EarningsLedger} from "./EarningsLedger.sol";
import {EntryPause} from "./EntryPause.sol";
import {EpochClock} from "./EpochClock.sol";
import {INodeRegistry} from "./interfaces/INodeRegistry.sol";
import {ISessionEscrow} from "./interfaces/ISessionEscrow.sol";
import {IVerifierCommittee} from "./interfaces/IVerifierCommittee.sol";
import {PermitLib} from "./libraries/PermitLib.sol";

/// @title SessionEscrow
/// @notice A client locks tokens for a route once, pays by signing cumulative vouchers off chain, and nodes settle the
/// newest one. EIP-712 domain: name "EfedSession", version "1".
/// @dev Tokens move only on deposit and withdrawal. In between, balances, sessions, credits and fees sum to what is
/// held.
contract SessionEscrow is EIP712, EntryPause, EarningsLedger {
    using SafeERC20 for IERC20;
    using SafeCast for uint256;

    bytes32 public constant VOUCHER_TYPEHASH =
        keccak256("Voucher(bytes32 sessionId,uint128 cumulative,uint64 tokens,bytes32 receiptsRoot)");
    bytes32 public constant OPEN_TYPEHASH = keccak256("Open(bytes32 sessionId,uint256 amount,uint256 deadline)");
    bytes32 public constant COOPERATIVE_CLOSE_TYPEHASH =
        keccak256("CooperativeClose(bytes32 sessionId,uint128 cumulative,uint64 tokens,bytes32 receiptsRoot)");

    uint40 public constant MIN_GRACE = 1;
    uint40 public constant MAX_GRACE = 30 days;

    uint8 private constant OPEN = 1;
    uint8 private constant CLOSING = 2;
    uint8 private constant CLOSED = 3;

    /// @notice Checks routes.
    INodeRegistry public immutable nodes;
    /// @notice Checks the standing of nodes.
    IVerifierCommittee public immutable committee;
    /// @inheritdoc ISessionEscrow
    uint40 public immutable grace;

    mapping(address client => uint256) private _balances;
    mapping(bytes32 sessionId => Session) private _sessions;

    constructor(
        IERC20 token_,
        INodeRegistry nodes_,
        IVerifierCommittee committee_,
        uint64 genesis_,
        uint32 epochLength_,
        uint16 feeBps_,
        uint40 grace_,
        address admin
    )
        EpochClock(genesis_, epochLength_)
        EIP712("EfedSession", "1")
        EntryPause(address(nodes_.vault()))
        EarningsLedger(token_, feeBps_, admin)
    {
        // INVARIANT: nodes have time to settle, and clients get their money back.
        require(grace_ >= MIN_GRACE && grace_ <= MAX_GRACE, GraceOutOfBounds(grace_, MIN_GRACE, MAX_GRACE));
        nodes = nodes_;
        committee = committee_;
        grace = grace_;
    }

    // --------------------------------------------------------------------------------------------------- balances

    /// @inheritdoc ISessionEscrow
    function deposit(uint256 amount) external nonReentrant {
        _deposit(msg.sender, amount);
    }

    /// @inheritdoc ISessionEscrow
    function depositWithPermit(uint256 amount, uint256 deadline, uint8 v, bytes32 r, bytes32 s) external nonReentrant {
        PermitLib.tryPermit(token, msg.sender, amount, deadline, v, r, s);
        _deposit(msg.sender, amount);
    }

    /// @inheritdoc ISessionEscrow
    function depositFor(address client, uint256 amount) external nonReentrant {
        _deposit(client, amount);
    }

    /// @inheritdoc ISessionEscrow
    function withdraw(uint256 amount) external nonReentrant {
        // INVARIANT: there is something to pay.
        require(amount != 0, ZeroAmount());
        _debit(msg.sender, amount);
        token.safeTransfer(msg.sender, amount);
        emit Withdrawn(msg.sender, amount);
    }

    // --------------------------------------------------------------------------------------------------- sessions

    /// @inheritdoc ISessionEscrow
    function open(SessionKey calldata key, uint256 amount) external whenEntryOpen returns (bytes32 sessionId) {
        // INVARIANT: only the client spends its balance.
        require(key.client == msg.sender, NotClient(key.client, msg.sender));
        sessionId = sessionIdOf(key);
        _open(key, sessionId, amount);
    }

    /// @inheritdoc ISessionEscrow
    function openWithSig(SessionKey calldata key, uint256 amount, uint256 deadline, bytes calldata sig)
        external
        whenEntryOpen
        returns (bytes32 sessionId)
    {
        // INVARIANT: an authorisation does not live for ever.
        require(block.timestamp <= deadline, DeadlinePassed(deadline, block.timestamp));
        sessionId = sessionIdOf(key);
        _checkSignature(key.client, openDigest(sessionId, amount, deadline), sig, true);
        _open(key, sessionId, amount);
    }

    /// @inheritdoc ISessionEscrow
    function topUp(SessionKey calldata key, uint256 amount) external {
        // INVARIANT: only the client spends its balance.
        require(key.client == msg.sender, NotClient(key.client, msg.sender));
        // INVARIANT: there is something to add.
        require(amount != 0, ZeroAmount());
        bytes32 id = sessionIdOf(key);
        Session memory s = _sessions[id];
        // INVARIANT: money goes into open sessions only.
        require(s.status == OPEN, WrongSessionStatus(id, s.status));
        _requireNotExpired(key);
        uint256 total = uint256(s.deposit) + amount;
        committee.checkStanding(key.nodes, total);
        _debit(msg.sender, amount);
        s.deposit = total.toUint96();
        _sessions[id] = s;
        emit ToppedUp(id, amount, total);
    }

    /// @inheritdoc ISessionEscrow
    function settle(SessionKey calldata key, Voucher calldata voucher, bytes calldata sig) external {
        bytes32 id = sessionIdOf(key);
        Session memory s = _liveSession(id);
        // INVARIANT: settled only grows.
        require(voucher.cumulative > s.settled, StaleVoucher(voucher.cumulative, s.settled));
        _checkSignature(key.signer, voucherDigest(voucher), sig, s.contractSigner);
        _pay(key, id, s, voucher);
        _sessions[id] = s;
    }

    /// @inheritdoc ISessionEscrow
    function settleMany(SessionKey[] calldata keys, Voucher[] calldata vouchers, bytes[] calldata sigs) external {
        // INVARIANT: one voucher and one signature for each session.
        require(
            keys.length == vouchers.length && keys.length == sigs.length,
            LengthMismatch(keys.length, vouchers.length, sigs.length)
        );
        for (uint256 i; i < keys.length; ++i) {
            _settleIfNews(keys[i], vouchers[i], sigs[i]);
        }
    }

    /// @inheritdoc ISessionEscrow
    function settleAndClose(SessionKey calldata key, Voucher calldata voucher, bytes calldata sig) external {
        bytes32 id = _requireClientOf(key);
        Session memory s = _sessions[id];
        // INVARIANT: states follow open -> closing -> closed.
        require(s.status == OPEN, WrongSessionStatus(id, s.status));
        if (voucher.cumulative > s.settled) {
            _checkSignature(key.signer, voucherDigest(voucher), sig, s.contractSigner);
            _pay(key, id, s, voucher);
        }
        // INVARIANT: no refund without a grace period in which nodes can show a newer voucher.
        if (s.settled == s.deposit) _close(key.client, id, s);
        else _startClosing(id, s);
    }

    /// @inheritdoc ISessionEscrow
    function closeCooperative(
        SessionKey calldata key,
        Voucher calldata voucher,
        bytes calldata clientSig,
        bytes[] calldata nodeSigs
    ) external {
        bytes32 id = sessionIdOf(key);
        Session memory s = _liveSession(id);
        // INVARIANT: settled never shrinks.
        require(voucher.cumulative >= s.settled, StaleVoucher(voucher.cumulative, s.settled));
        // INVARIANT: every party agreed to the final amount.
        require(nodeSigs.length == key.nodes.length, NodeSignaturesMismatch(key.nodes.length, nodeSigs.length));
        bytes32 digest = cooperativeCloseDigest(voucher);
        _checkSignature(key.client, digest, clientSig, true);
        for (uint256 i; i < nodeSigs.length; ++i) {
            _checkSignature(nodes.nodeOf(key.nodes[i]).signer, digest, nodeSigs[i], true);
        }
        _pay(key, id, s, voucher);
        _close(key.client, id, s);
    }

    /// @inheritdoc ISessionEscrow
    function requestClose(SessionKey calldata key) external {
        bytes32 id = _requireClientOf(key);
        Session memory s = _sessions[id];
        // INVARIANT: states follow open -> closing -> closed.
        require(s.status == OPEN, WrongSessionStatus(id, s.status));
        _startClosing(id, s);
    }

    /// @inheritdoc ISessionEscrow
    function finalizeClose(SessionKey calldata key) external {
        bytes32 id = sessionIdOf(key);
        Session memory s = _liveSession(id);
        uint256 closesAt = s.status == CLOSING ? s.closesAt : uint256(key.expiry) + grace;
        // INVARIANT: nodes had the grace period to settle.
        require(block.timestamp >= closesAt, TooEarlyToClose(closesAt, block.timestamp));
        _close(key.client, id, s);
    }

    // ------------------------------------------------------------------------------------------------------ views

    /// @inheritdoc ISessionEscrow
    function balanceOf(address client) external view returns (uint256) {
        return _balances[client];
    }

    /// @inheritdoc ISessionEscrow
    function sessionOf(bytes32 sessionId) external view returns (Session memory) {
        return _sessions[sessionId];
    }

    /// @inheritdoc ISessionEscrow
    function sessionIdOf(SessionKey calldata key) public view returns (bytes32) {
        return keccak256(abi.encode(block.chainid, address(this), key));
    }

    /// @inheritdoc ISessionEscrow
    function voucherDigest(Voucher calldata voucher) public view returns (bytes32) {
        return _hashTypedDataV4(keccak256(abi.encode(VOUCHER_TYPEHASH, voucher)));
    }

    /// @inheritdoc ISessionEscrow
    function openDigest(bytes32 sessionId, uint256 amount, uint256 deadline) public view returns (bytes32) {
        return _hashTypedDataV4(keccak256(abi.encode(OPEN_TYPEHASH, sessionId, amount, deadline)));
    }

    /// @inheritdoc ISessionEscrow
    function cooperativeCloseDigest(Voucher calldata voucher) public view returns (bytes32) {
        return _hashTypedDataV4(keccak256(abi.encode(COOPERATIVE_CLOSE_TYPEHASH, voucher)));
    }

    // --------------------------------------------------------------------------------------------------- internal

    function _deposit(address client, uint256 amount) private {
        // INVARIANT: there is something to add.
        require(amount != 0, ZeroAmount());
        _balances[client] += amount;
        token.safeTransferFrom(msg.sender, address(this), amount);
        emit Deposited(client, amount);
    }

    function _debit(address client, uint256 amount) private {
        uint256 balance = _balances[client];
        // INVARIANT: nobody spends what it does not have.
        require(amount <= balance, InsufficientBalance(amount, balance));
        unchecked {
            // amount <= balance.
            _balances[client] = balance - amount;
        }
    }

    function _open(SessionKey calldata key, bytes32 id, uint256 amount) private {
        // INVARIANT: a session holds something.
        require(amount != 0, ZeroAmount());
        // INVARIANT: an id is opened once; closed is final.
        require(_sessions[id].status == 0, SessionExists(id));
        _requireNotExpired(key);
        _checkShares(key);
        uint256 price = nodes.checkRoute(key.modelId, key.nodes);
        // INVARIANT: the client pays no more than it agreed to.
        require(price <= key.maxPricePerKTok, RouteTooExpensive(price, key.maxPricePerKTok));
        committee.checkStanding(key.nodes, amount);
        _debit(key.client, amount);
        _sessions[id] = Session({
            deposit: amount.toUint96(),
            settled: 0,
            closesAt: 0,
            feeBps: feeBps(),
            status: OPEN,
            contractSigner: key.signer.code.length != 0
        });
        emit SessionOpened(id, key.client, key.modelId, amount, key.expiry);
    }

    function _settleIfNews(SessionKey calldata key, Voucher calldata voucher, bytes calldata sig) private {
        bytes32 id = sessionIdOf(key);
        Session memory s = _sessions[id];
        if (s.status == 0 || s.status == CLOSED || voucher.cumulative <= s.settled) return;
        _checkSignature(key.signer, voucherDigest(voucher), sig, s.contractSigner);
        _pay(key, id, s, voucher);
        _sessions[id] = s;
    }

    /// @dev Updates `s` in memory; the caller stores it.
    function _pay(SessionKey calldata key, bytes32 id, Session memory s, Voucher calldata voucher) private {
        // INVARIANT: a voucher pays for its own session only.
        require(voucher.sessionId == id, WrongSession(id, voucher.sessionId));
        // INVARIANT: settled <= deposit.
        require(voucher.cumulative <= s.deposit, VoucherExceedsDeposit(voucher.cumulative, s.deposit));
        uint256 paid = voucher.cumulative - s.settled;
        if (paid == 0) return;
        uint256 fee = (paid * s.feeBps) / BPS;
        // cumulative <= deposit < 2^96.
        s.settled = uint96(voucher.cumulative);
        uint64 epoch = currentEpoch();
        _creditNodes(key, paid - fee, epoch);
        _creditProtocol(paid, fee, epoch);
        emit Settled(id, voucher.cumulative, paid, fee, voucher.tokens, voucher.receiptsRoot);
    }

    function _startClosing(bytes32 id, Session memory s) private {
        uint256 closesAt = block.timestamp + grace;
        s.status = CLOSING;
        s.closesAt = closesAt.toUint32();
        _sessions[id] = s;
        emit CloseRequested(id, closesAt);
    }

    function _close(address client, bytes32 id, Session memory s) private {
        // settled <= deposit.
        uint256 refund = uint256(s.deposit) - s.settled;
        s.status = CLOSED;
        _sessions[id] = s;
        if (refund != 0) _balances[client] += refund;
        emit SessionClosed(id, refund);
    }

    function _requireClientOf(SessionKey calldata key) private view returns (bytes32) {
        // INVARIANT: only the client ends its session early.
        require(key.client == msg.sender, NotClient(key.client, msg.sender));
        return sessionIdOf(key);
    }

    function _requireNotExpired(SessionKey calldata key) private view {
        // INVARIANT: nodes have until the expiry to work.
        require(key.expiry > block.timestamp, SessionExpired(key.expiry, block.timestamp));
    }

    function _liveSession(bytes32 id) private view returns (Session memory s) {
        s = _sessions[id];
        // INVARIANT: nothing is released after the close.
        require(s.status == OPEN || s.status == CLOSING, WrongSessionStatus(id, s.status));
    }

    /// @dev Recovers the key first. The holder of a key can set and clear the code of its account at any time
    /// (EIP-7702). ERC-1271 asks that code, so a client could void vouchers after it was served. A signature of the key
    /// stays valid whatever the code says.
    /// @param byContract Whether ERC-1271 counts when recovery fails. A voucher is a promise of the past: ERC-1271
    /// counts only when the signer had code as the session opened. Opening and closing together are agreements that the
    /// same call carries out: the code that the account has now may agree.
    function _checkSignature(address signer, bytes32 digest, bytes calldata sig, bool byContract) private view {
        (address recovered, ECDSA.RecoverError error_,) = ECDSA.tryRecover(digest, sig);
        // INVARIANT: what the key of the signer signed is valid. No code that the signer gets or loses changes that.
        if (error_ == ECDSA.RecoverError.NoError && recovered == signer) return;
        // INVARIANT: otherwise a contract signed exactly this. A voucher never depends on code that came after the
        // opening.
        require(
            byContract && signer.code.length != 0 && SignatureChecker.isValidERC1271SignatureNow(signer, digest, sig),
            InvalidSignature(signer)
        );
    }

    function _checkShares(SessionKey calldata key) private pure {
        uint256 n = key.shares.length;
        // INVARIANT: every node has a share.
        require(n == key.nodes.length, SharesLengthMismatch(key.nodes.length, n));
        uint256 sum;
        for (uint256 i; i < n; ++i) {
            sum += key.shares[i];
        }
        // INVARIANT: the shares are the whole.
        require(sum == BPS, SharesSumMismatch(sum));
    }
}
