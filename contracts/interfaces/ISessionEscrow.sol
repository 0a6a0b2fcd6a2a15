// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

/// @title ISessionEscrowTypes
interface ISessionEscrowTypes {
    /// @notice Terms of a session. Only their hash is stored; callers bring them along.
    /// @param client Account that pays.
    /// @param signer Hot key that signs vouchers, or a contract that signs them by ERC-1271.
    /// @param modelId Model of the route.
    /// @param nonce Number that makes the session key unique.
    /// @param expiry From expiry + grace on anyone may close, unix seconds.
    /// @param maxPricePerKTok Highest route price accepted, gwei of EFED per 1000 tokens.
    /// @param nodes The route, in layer order.
    /// @param shares Split of the payments, basis points, sum 10000.
    struct SessionKey {
        address client;
        address signer;
        bytes32 modelId;
        uint64 nonce;
        uint40 expiry;
        uint64 maxPricePerKTok;
        address[] nodes;
        uint16[] shares;
    }

    /// @notice State of a session, in one slot.
    /// @param deposit Tokens that the session was given, wei.
    /// @param settled Part of them that vouchers have paid, wei.
    /// @param closesAt End of the grace period, unix seconds; 0 unless a close was requested. 32 bits last until the
    /// year 2106. A session of later years closes only after expiry + grace.
    /// @param feeBps Protocol fee of this session, basis points.
    /// @param status 0 none, 1 open, 2 closing, 3 closed.
    /// @param contractSigner Whether the signer had code when the session opened. ERC-1271 counts for vouchers only if
    /// it is set. A voucher that the signer's key signed counts in every session. A contract can refuse later what it
    /// accepted before, so nodes do not work for a voucher that only a contract vouches for.
    struct Session {
        uint96 deposit;
        uint96 settled;
        uint32 closesAt;
        uint16 feeBps;
        uint8 status;
        bool contractSigner;
    }

    /// @notice A promise to pay `cumulative` wei in all. Only the newest matters.
    /// @param sessionId Id of the session.
    /// @param cumulative Total that the session has paid with it, wei.
    /// @param tokens Tokens served so far.
    /// @param receiptsRoot Root over the receipts it pays for.
    struct Voucher {
        bytes32 sessionId;
        uint128 cumulative;
        uint64 tokens;
        bytes32 receiptsRoot;
    }
}

/// @title ISessionEscrowErrors
interface ISessionEscrowErrors {
    /// @notice Nothing to move.
    error ZeroAmount();
    /// @notice The balance is too small.
    /// @param needed Amount asked for, wei.
    /// @param available Balance of the client outside sessions, wei.
    error InsufficientBalance(uint256 needed, uint256 available);
    /// @notice Only the client of the session may do this.
    /// @param client Account that opened the session.
    /// @param caller Account that sent the transaction.
    error NotClient(address client, address caller);
    /// @notice The session was opened before.
    /// @param sessionId Id that the session key gives.
    error SessionExists(bytes32 sessionId);
    /// @notice The session is in a state that does not allow this.
    /// @param sessionId Id of the session.
    /// @param status Its status: 0 none, 1 open, 2 closing, 3 closed.
    error WrongSessionStatus(bytes32 sessionId, uint8 status);
    /// @notice Every node needs a share.
    /// @param nodes Nodes of the session key.
    /// @param shares Shares of the session key.
    error SharesLengthMismatch(uint256 nodes, uint256 shares);
    /// @notice The shares have to sum to 10000.
    /// @param sum Sum of the shares, basis points.
    error SharesSumMismatch(uint256 sum);
    /// @notice The session would be over already.
    /// @param expiry Expiry of the session key, unix seconds.
    /// @param timestamp Time of the block, unix seconds.
    error SessionExpired(uint256 expiry, uint256 timestamp);
    /// @notice The route costs more than the key allows, gwei of EFED per 1000 tokens.
    /// @param price Sum of the prices of the nodes.
    /// @param max Highest price that the session key accepts.
    error RouteTooExpensive(uint256 price, uint256 max);
    /// @notice The authorisation is too old.
    /// @param deadline Last moment of the authorisation, unix seconds.
    /// @param timestamp Time of the block, unix seconds.
    error DeadlinePassed(uint256 deadline, uint256 timestamp);
    /// @notice The signature is not by this account.
    /// @param expected Account that should have signed.
    error InvalidSignature(address expected);
    /// @notice The voucher belongs to another session.
    /// @param expected Id that the session key gives.
    /// @param actual Id in the voucher.
    error WrongSession(bytes32 expected, bytes32 actual);
    /// @notice The voucher pays no more than was settled.
    /// @param cumulative Amount of the voucher, wei.
    /// @param settled Amount settled before, wei.
    error StaleVoucher(uint256 cumulative, uint256 settled);
    /// @notice The voucher promises more than the session holds.
    /// @param cumulative Amount of the voucher, wei.
    /// @param deposit Deposit of the session, wei.
    error VoucherExceedsDeposit(uint256 cumulative, uint256 deposit);
    /// @notice Parallel lists differ in length.
    /// @param keys Session keys in the call.
    /// @param vouchers Vouchers in the call.
    /// @param signatures Signatures in the call.
    error LengthMismatch(uint256 keys, uint256 vouchers, uint256 signatures);
    /// @notice One signature per node is needed.
    /// @param nodes Nodes of the session key.
    /// @param signatures Signatures in the call.
    error NodeSignaturesMismatch(uint256 nodes, uint256 signatures);
    /// @notice The session cannot be closed before this time.
    /// @param closesAt First moment at which it can be closed, unix seconds.
    /// @param timestamp Time of the block, unix seconds.
    error TooEarlyToClose(uint256 closesAt, uint256 timestamp);
    /// @notice Payouts need a receiver.
    error InvalidReceiver();
    /// @notice The fee is above its bound.
    /// @param feeBps Value given, basis points.
    /// @param max Greatest value allowed, basis points.
    error FeeTooHigh(uint256 feeBps, uint256 max);
    /// @notice The grace period is outside its bounds, seconds.
    /// @param grace Value given.
    /// @param min Least value allowed, seconds.
    /// @param max Greatest value allowed, seconds.
    error GraceOutOfBounds(uint256 grace, uint256 min, uint256 max);
}

/// @title ISessionEscrowEvents
interface ISessionEscrowEvents {
    /// @notice Tokens were added to the balance of a client.
    /// @param client Account whose balance grew.
    /// @param amount Tokens added, wei.
    event Deposited(address indexed client, uint256 amount);
    /// @notice A client took tokens out of its balance.
    /// @param client Account that was paid.
    /// @param amount Tokens paid out, wei.
    event Withdrawn(address indexed client, uint256 amount);
    /// @notice A session was opened.
    /// @param sessionId Id of the session.
    /// @param client Account that pays.
    /// @param modelId Model of the route.
    /// @param deposit Tokens moved into the session, wei.
    /// @param expiry From expiry + grace on anyone may close, unix seconds.
    event SessionOpened(
        bytes32 indexed sessionId, address indexed client, bytes32 indexed modelId, uint256 deposit, uint40 expiry
    );
    /// @notice A client moved more of its balance into a session.
    /// @param sessionId Id of the session.
    /// @param amount Tokens added, wei.
    /// @param deposit Deposit of the session now, wei.
    event ToppedUp(bytes32 indexed sessionId, uint256 amount, uint256 deposit);
    /// @notice A voucher was settled.
    /// @param sessionId Id of the session.
    /// @param cumulative Amount of the voucher, wei; all that is settled of the session.
    /// @param paid What the voucher added to what was settled before, wei, fee included.
    /// @param fee Protocol fee within `paid`, wei; the nodes share the rest.
    /// @param tokens Tokens of the voucher, served so far.
    /// @param receiptsRoot Root over the receipts that the voucher pays for; may be zero.
    event Settled(
        bytes32 indexed sessionId, uint256 cumulative, uint256 paid, uint256 fee, uint64 tokens, bytes32 receiptsRoot
    );
    /// @notice The grace period of a session began.
    /// @param sessionId Id of the session.
    /// @param closesAt End of the grace period, unix seconds.
    event CloseRequested(bytes32 indexed sessionId, uint256 closesAt);
    /// @notice A session ended.
    /// @param sessionId Id of the session.
    /// @param refund Tokens returned to the balance of the client, wei.
    event SessionClosed(bytes32 indexed sessionId, uint256 refund);
    /// @notice A node took its credits.
    /// @param node Account of the node.
    /// @param to Receiver of the tokens.
    /// @param amount Tokens paid out, wei.
    event FeesWithdrawn(address indexed node, address to, uint256 amount);
    /// @notice The protocol fees were burned.
    /// @param amount Tokens burned, wei.
    event ProtocolFeesBurned(uint256 amount);
    /// @notice Another protocol fee was scheduled.
    /// @param oldFeeBps Fee of sessions opened before, basis points.
    /// @param newFeeBps Fee of sessions opened from then on, basis points.
    /// @param fromEpoch First epoch of the new fee.
    event FeeScheduled(uint16 oldFeeBps, uint16 newFeeBps, uint64 fromEpoch);
}

/// @title ISessionEscrow
/// @notice Clients' balances, sessions and their settlement by cumulative EIP-712 vouchers.
interface ISessionEscrow is ISessionEscrowTypes, ISessionEscrowErrors, ISessionEscrowEvents {
    /// @notice Adds to the caller's balance.
    function deposit(uint256 amount) external;

    /// @notice `deposit` after a permit; a permit that somebody else submitted first does no harm.
    function depositWithPermit(uint256 amount, uint256 deadline, uint8 v, bytes32 r, bytes32 s) external;

    /// @notice Adds the caller's tokens to the balance of `client`.
    function depositFor(address client, uint256 amount) external;

    /// @notice Pays out of the caller's balance.
    function withdraw(uint256 amount) external;

    /// @notice Opens a session and moves `amount` of the caller's balance into it.
    function open(SessionKey calldata key, uint256 amount) external returns (bytes32 sessionId);

    /// @notice `open` by anyone, authorised by the client:
    /// EIP-712 Open(bytes32 sessionId,uint256 amount,uint256 deadline) signed by key.client.
    /// @dev The signature is one of the client's key, whatever code the account has. If it is not, the code that the
    /// account has now is asked by ERC-1271.
    function openWithSig(SessionKey calldata key, uint256 amount, uint256 deadline, bytes calldata sig)
        external
        returns (bytes32 sessionId);

    /// @notice Moves more of the client's balance into an open session. Client only.
    function topUp(SessionKey calldata key, uint256 amount) external;

    /// @notice Credits what a newer voucher adds to the nodes of the route. Anyone, until the session is closed.
    /// @dev The signature is one of the signer's key, whatever code the account has. If it is not, the signer is asked
    /// by ERC-1271, but only in a session with contractSigner. The same rule holds for settleMany and settleAndClose.
    function settle(SessionKey calldata key, Voucher calldata voucher, bytes calldata sig) external;

    /// @notice Settles many; skips vouchers that have nothing to add, so that nobody can spoil the batch.
    function settleMany(SessionKey[] calldata keys, Voucher[] calldata vouchers, bytes[] calldata sigs) external;

    /// @notice Settles a voucher (unless it is settled) and ends the session in one call. Client only.
    /// @dev Closes at once when nothing is left to refund. Otherwise the grace period runs first, because only the
    /// nodes can tell whether a newer voucher exists.
    function settleAndClose(SessionKey calldata key, Voucher calldata voucher, bytes calldata sig) external;

    /// @notice Closes at once at a final amount that the client and every node signed:
    /// EIP-712 CooperativeClose(bytes32 sessionId,uint128 cumulative,uint64 tokens,bytes32 receiptsRoot), by key.client
    /// and by the registered signer of each node, in route order. Anyone may submit it.
    /// @dev Each signature is one of the account's key, whatever code the account has. If it is not, the code that the
    /// account has now is asked by ERC-1271.
    function closeCooperative(
        SessionKey calldata key,
        Voucher calldata voucher,
        bytes calldata clientSig,
        bytes[] calldata nodeSigs
    ) external;

    /// @notice Starts the grace period in which nodes may settle. Client only.
    function requestClose(SessionKey calldata key) external;

    /// @notice Refunds the rest to the client's balance, after the grace period or after expiry + grace. Anyone.
    function finalizeClose(SessionKey calldata key) external;

    /// @notice Pays the caller's credits as a node to `to`.
    function withdrawFees(address to) external;

    /// @notice Burns the protocol fees. Anyone.
    function sweepProtocolFees() external;

    /// @notice Schedules the fee of sessions opened from the next epoch on. DEFAULT_ADMIN_ROLE only.
    function setFeeBps(uint16 next) external;

    /// @notice Fee of a session opened now, basis points.
    function feeBps() external view returns (uint16);

    /// @notice How long nodes may settle after a close was requested or a session expired, seconds.
    function grace() external view returns (uint40);

    /// @notice Balance of a client outside sessions, wei.
    function balanceOf(address client) external view returns (uint256);

    /// @notice A session; all zero when unknown.
    function sessionOf(bytes32 sessionId) external view returns (Session memory);

    /// @notice keccak256(abi.encode(block.chainid, address(this), key))
    function sessionIdOf(SessionKey calldata key) external view returns (bytes32);

    /// @notice EIP-712 digest that the signer of a session signs.
    function voucherDigest(Voucher calldata voucher) external view returns (bytes32);

    /// @notice EIP-712 digest for openWithSig.
    function openDigest(bytes32 sessionId, uint256 amount, uint256 deadline) external view returns (bytes32);

    /// @notice EIP-712 digest for closeCooperative.
    function cooperativeCloseDigest(Voucher calldata voucher) external view returns (bytes32);

    /// @notice Credits a node can withdraw, wei.
    function owedOf(address node) external view returns (uint256);

    /// @notice Credits of a node in epoch `e`, rounded down to gwei, wei. Kept for the last epoch with credits and the
    /// one before it; 0 for older ones.
    function workOf(uint64 e, address node) external view returns (uint256);

    /// @notice Everything settled in epoch `e`, wei.
    function volumeOf(uint64 e) external view returns (uint256);

    /// @notice Fees waiting to be burned, wei.
    function protocolFees() external view returns (uint256);
}
