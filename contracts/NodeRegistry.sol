// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {EntryPause} from "./EntryPause.sol";
import {EpochClock} from "./EpochClock.sol";
import {IModelRegistry} from "./interfaces/IModelRegistry.sol";
import {INodeRegistry} from "./interfaces/INodeRegistry.sol";
import {IStakeVault} from "./interfaces/IStakeVault.sol";

/// @title NodeRegistry
/// @notice Nodes by address: one registration at a time, for one contiguous layer range of one model.
contract NodeRegistry is INodeRegistry, EpochClock, EntryPause {
    /// @dev The first six fields share a slot.
    struct Node {
        address signer;
        uint16 lo;
        uint16 hi;
        uint48 pricePerKTok;
        uint8 status;
        bool hasUpdate;
        bytes32 modelId;
        bytes32 shardRoot;
    }

    struct Update {
        address signer;
        uint48 pricePerKTok;
        uint48 fromEpoch;
    }

    uint8 private constant ACTIVE = 1;
    uint8 private constant PAUSED = 2;
    uint8 private constant RETIRED = 3;
    uint8 private constant MODEL_ACTIVE = 1;
    uint8 private constant FLAG_JAILED = 1;

    uint256 public constant MAX_ROUTE_LENGTH = 32;
    uint256 public constant MAX_ENDPOINT_LENGTH = 256;

    /// @inheritdoc INodeRegistry
    IStakeVault public immutable vault;
    /// @inheritdoc INodeRegistry
    IModelRegistry public immutable models;
    /// @inheritdoc INodeRegistry
    uint96 public immutable minStakePerLayer;

    mapping(address node => Node) private _nodes;
    mapping(address node => Update) private _updates;
    mapping(address node => mapping(address signer => bool)) private _signers;

    constructor(
        IStakeVault vault_,
        IModelRegistry models_,
        uint64 genesis_,
        uint32 epochLength_,
        uint96 minStakePerLayer_
    ) EpochClock(genesis_, epochLength_) EntryPause(address(vault_)) {
        vault = vault_;
        models = models_;
        minStakePerLayer = minStakePerLayer_;
    }

    /// @inheritdoc INodeRegistry
    function register(
        bytes32 modelId,
        uint16 lo,
        uint16 hi,
        uint48 pricePerKTok,
        address signer,
        bytes32 shardRoot,
        string calldata endpoint
    ) external whenEntryOpen {
        _checkEndpoint(endpoint);
        _checkRange(modelId, lo, hi);
        Node storage n = _nodes[msg.sender];
        // INVARIANT: a node has one registration at a time.
        require(n.status == 0 || n.status == RETIRED, AlreadyRegistered(msg.sender));
        // INVARIANT: commits can be checked against a key.
        require(signer != address(0), InvalidSigner());
        _signers[msg.sender][signer] = true;
        n.signer = signer;
        n.lo = lo;
        n.hi = hi;
        n.pricePerKTok = pricePerKTok;
        n.status = ACTIVE;
        n.hasUpdate = false;
        n.modelId = modelId;
        n.shardRoot = shardRoot;
        _emitRegistered(n, endpoint);
    }

    /// @inheritdoc INodeRegistry
    function update(uint48 price, address signer) external {
        Node storage n = _nodes[msg.sender];
        // INVARIANT: only a registration that lives can change.
        require(n.status == ACTIVE || n.status == PAUSED, WrongNodeStatus(msg.sender, n.status));
        // INVARIANT: commits can be checked against a key.
        require(signer != address(0), InvalidSigner());
        if (n.hasUpdate) (n.signer, n.pricePerKTok) = _termsOf(n, msg.sender);
        _signers[msg.sender][signer] = true;
        uint64 from = currentEpoch() + 1;
        n.hasUpdate = true;
        _updates[msg.sender] = Update({signer: signer, pricePerKTok: price, fromEpoch: uint48(from)});
        emit NodeUpdated(msg.sender, price, signer, from);
    }

    /// @inheritdoc INodeRegistry
    function setEndpoint(string calldata endpoint) external {
        uint8 status = _nodes[msg.sender].status;
        // INVARIANT: only a registration that lives has an endpoint.
        require(status == ACTIVE || status == PAUSED, WrongNodeStatus(msg.sender, status));
        _checkEndpoint(endpoint);
        emit EndpointUpdated(msg.sender, endpoint);
    }

    /// @inheritdoc INodeRegistry
    function pause() external {
        _move(ACTIVE, PAUSED);
        emit NodePaused(msg.sender);
    }

    /// @inheritdoc INodeRegistry
    function resume() external {
        _move(PAUSED, ACTIVE);
        emit NodeResumed(msg.sender);
    }

    /// @inheritdoc INodeRegistry
    function retire() external {
        Node storage n = _nodes[msg.sender];
        // INVARIANT: only a registration that lives can end.
        require(n.status == ACTIVE || n.status == PAUSED, WrongNodeStatus(msg.sender, n.status));
        n.status = RETIRED;
        emit NodeRetired(msg.sender);
    }

    /// @inheritdoc INodeRegistry
    function nodeOf(address node) external view returns (NodeView memory v) {
        Node storage n = _nodes[node];
        (v.signer, v.pricePerKTok) = _termsOf(n, node);
        v.lo = n.lo;
        v.hi = n.hi;
        v.status = n.status;
        v.modelId = n.modelId;
        v.shardRoot = n.shardRoot;
    }

    /// @inheritdoc INodeRegistry
    function isSigner(address node, address signer) external view returns (bool) {
        return _signers[node][signer];
    }

    /// @inheritdoc INodeRegistry
    function statusOf(address node) external view returns (uint8) {
        return _nodes[node].status;
    }

    /// @inheritdoc INodeRegistry
    function checkRoute(bytes32 modelId, address[] calldata nodes) external view returns (uint256 price) {
        uint256 count = nodes.length;
        // INVARIANT: loops over a route are bounded.
        require(count != 0 && count <= MAX_ROUTE_LENGTH, RouteLengthOutOfBounds(count, MAX_ROUTE_LENGTH));
        (uint256 layers, uint8 modelStatus) = models.shapeOf(modelId);
        // INVARIANT: no new work for a model that ended.
        require(modelStatus == MODEL_ACTIVE, ModelNotActive(modelId));
        uint256 next;
        for (uint256 i; i < count; ++i) {
            address node = nodes[i];
            Node storage n = _nodes[node];
            _checkNode(n, node, modelId);
            uint256 lo = n.lo;
            // INVARIANT: every layer is served once, in order.
            require(lo == next, RouteGap(i, next, lo));
            next = n.hi;
            _checkStake(node, next - lo);
            (, uint48 nodePrice) = _termsOf(n, node);
            price += nodePrice;
        }
        // INVARIANT: the route ends with the last layer.
        require(next == layers, RouteIncomplete(next, layers));
    }

    function _move(uint8 from, uint8 to) private {
        Node storage n = _nodes[msg.sender];
        // INVARIANT: states follow none -> active <-> paused -> retired.
        require(n.status == from, WrongNodeStatus(msg.sender, n.status));
        n.status = to;
    }

    function _emitRegistered(Node storage n, string calldata endpoint) private {
        emit NodeRegistered(msg.sender, n.modelId, n.lo, n.hi, n.pricePerKTok, n.signer, n.shardRoot, endpoint);
    }

    function _checkRange(bytes32 modelId, uint256 lo, uint256 hi) private view {
        (uint256 layers, uint8 modelStatus) = models.shapeOf(modelId);
        // INVARIANT: nodes serve published models only.
        require(modelStatus == MODEL_ACTIVE, ModelNotActive(modelId));
        // INVARIANT: 0 <= lo < hi <= layers.
        require(lo < hi && hi <= layers, BadLayerRange(lo, hi, layers));
        _checkStake(msg.sender, hi - lo);
    }

    /// @dev Stake and jail lie in one slot of the vault unless the node was jailed at some time.
    function _checkStake(address node, uint256 layers) private view {
        IStakeVault.Stake memory s = vault.stakeOf(node);
        uint256 needed = layers * minStakePerLayer;
        // INVARIANT: every served layer has stake behind it that is not leaving.
        require(s.active >= needed, StakeTooLow(node, needed, s.active));
        if (s.flags & FLAG_JAILED != 0) {
            uint256 until = vault.jailedUntil(node);
            // INVARIANT: a jailed node takes no work.
            require(block.timestamp >= until, NodeJailed(node, until));
        }
    }

    function _checkNode(Node storage n, address node, bytes32 modelId) private view {
        // INVARIANT: only nodes that accept sessions are routed to.
        require(n.status == ACTIVE, NodeNotActive(node, n.status));
        // INVARIANT: the node serves the weights that the session is about.
        require(n.modelId == modelId, WrongModel(node, modelId, n.modelId));
    }

    /// @dev Signer and price now: the update once it is due.
    function _termsOf(Node storage n, address node) private view returns (address signer, uint48 price) {
        if (n.hasUpdate) {
            Update storage u = _updates[node];
            if (u.fromEpoch <= currentEpoch()) return (u.signer, u.pricePerKTok);
        }
        return (n.signer, n.pricePerKTok);
    }

    function _checkEndpoint(string calldata endpoint) private pure {
        uint256 length = bytes(endpoint).length;
        // INVARIANT: a node can be reached, and its event stays small.
        require(length != 0 && length <= MAX_ENDPOINT_LENGTH, EndpointLengthOutOfBounds(length, MAX_ENDPOINT_LENGTH));
    }
}
