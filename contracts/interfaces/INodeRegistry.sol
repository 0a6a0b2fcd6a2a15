// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {IModelRegistry} from "./IModelRegistry.sol";
import {IStakeVault} from "./IStakeVault.sol";

/// @title INodeRegistryTypes
interface INodeRegistryTypes {
    /// @notice A node as it is now.
    /// @param signer Hot key that signs commits and receipts.
    /// @param lo First layer served.
    /// @param hi One past the last layer served.
    /// @param pricePerKTok Gwei of EFED per 1000 tokens, for the whole range.
    /// @param status 0 none, 1 active, 2 paused, 3 retired.
    /// @param modelId Model that it serves.
    /// @param shardRoot Root over the tensors of the served range.
    struct NodeView {
        address signer;
        uint16 lo;
        uint16 hi;
        uint48 pricePerKTok;
        uint8 status;
        bytes32 modelId;
        bytes32 shardRoot;
    }
}

/// @title INodeRegistryErrors
interface INodeRegistryErrors {
    /// @notice The caller is registered; retire first.
    /// @param node Account of the caller.
    error AlreadyRegistered(address node);
    /// @notice The caller's status does not allow this.
    /// @param node Account of the caller.
    /// @param status Its status: 0 none, 1 active, 2 paused, 3 retired.
    error WrongNodeStatus(address node, uint8 status);
    /// @notice The model is unknown or deprecated.
    /// @param modelId Id in the call.
    error ModelNotActive(bytes32 modelId);
    /// @notice The range is empty or goes past the model's last layer.
    /// @param lo First layer of the range.
    /// @param hi One past the last layer of the range.
    /// @param layers Layers of the model.
    error BadLayerRange(uint256 lo, uint256 hi, uint256 layers);
    /// @notice The signer cannot be address 0.
    error InvalidSigner();
    /// @notice The endpoint is empty or too long.
    /// @param length Length of the endpoint, bytes.
    /// @param max Greatest length allowed, bytes.
    error EndpointLengthOutOfBounds(uint256 length, uint256 max);
    /// @notice The stake does not cover the range.
    /// @param node Account of the node.
    /// @param needed Active stake that the range needs, wei.
    /// @param available Active stake of the node, wei.
    error StakeTooLow(address node, uint256 needed, uint256 available);
    /// @notice A route has between one and `max` nodes.
    /// @param length Nodes in the call.
    /// @param max Most nodes of a route.
    error RouteLengthOutOfBounds(uint256 length, uint256 max);
    /// @notice Node number `index` should start at layer `expected`.
    /// @param index Place in the route, counted from 0.
    /// @param expected Layer at which the node should start.
    /// @param lo Layer at which it starts.
    error RouteGap(uint256 index, uint256 expected, uint256 lo);
    /// @notice The route stops before the last layer.
    /// @param end One past the last layer that the route covers.
    /// @param layers Layers of the model.
    error RouteIncomplete(uint256 end, uint256 layers);
    /// @notice The node serves another model.
    /// @param node Account of the node.
    /// @param expected Model of the route.
    /// @param actual Model that the node serves.
    error WrongModel(address node, bytes32 expected, bytes32 actual);
    /// @notice The node is paused, retired or unknown.
    /// @param node Account of the node.
    /// @param status Its status: 0 none, 1 active, 2 paused, 3 retired.
    error NodeNotActive(address node, uint8 status);
    /// @notice The node is jailed in the vault until `until` (unix seconds).
    /// @param node Account of the node.
    /// @param until End of the sentence, unix seconds.
    error NodeJailed(address node, uint256 until);
}

/// @title INodeRegistryEvents
interface INodeRegistryEvents {
    /// @notice A node registered for a range of layers.
    /// @param node Account of the node.
    /// @param modelId Model that it serves.
    /// @param lo First layer served.
    /// @param hi One past the last layer served.
    /// @param pricePerKTok Gwei of EFED per 1000 tokens, for the whole range.
    /// @param signer Hot key that signs commits and receipts.
    /// @param shardRoot Root over the tensors of the served range.
    /// @param endpoint Address at which the node is reached, http://HOST:PORT.
    event NodeRegistered(
        address indexed node,
        bytes32 indexed modelId,
        uint16 lo,
        uint16 hi,
        uint48 pricePerKTok,
        address signer,
        bytes32 shardRoot,
        string endpoint
    );
    /// @notice A node scheduled another price and signer.
    /// @param node Account of the node.
    /// @param price Gwei of EFED per 1000 tokens, for the whole range.
    /// @param signer Hot key that signs commits and receipts.
    /// @param fromEpoch First epoch in which both count.
    event NodeUpdated(address indexed node, uint48 price, address signer, uint64 fromEpoch);
    /// @notice A node announced another endpoint.
    /// @param node Account of the node.
    /// @param endpoint Address at which the node is reached, http://HOST:PORT.
    event EndpointUpdated(address indexed node, string endpoint);
    /// @notice A node takes no new sessions for now.
    /// @param node Account of the node.
    event NodePaused(address indexed node);
    /// @notice A paused node takes sessions again.
    /// @param node Account of the node.
    event NodeResumed(address indexed node);
    /// @notice A node ended its registration.
    /// @param node Account of the node.
    event NodeRetired(address indexed node);
}

/// @title INodeRegistry
/// @notice Which node serves which layers of which model, at what price, behind which stake.
interface INodeRegistry is INodeRegistryTypes, INodeRegistryErrors, INodeRegistryEvents {
    /// @notice Registers the caller for layers [lo, hi) of a model. Needs minStakePerLayer * (hi - lo) active stake.
    function register(
        bytes32 modelId,
        uint16 lo,
        uint16 hi,
        uint48 pricePerKTok,
        address signer,
        bytes32 shardRoot,
        string calldata endpoint
    ) external;

    /// @notice Changes price and signer from the next epoch on; replaces a change that is not due yet.
    function update(uint48 price, address signer) external;

    /// @notice Announces where the node is reached. Event only.
    function setEndpoint(string calldata endpoint) external;

    /// @notice Takes no new sessions for now.
    function pause() external;

    /// @notice Takes sessions again.
    function resume() external;

    /// @notice Ends the registration. The node may register again, also for another range.
    function retire() external;

    /// @notice A node, with a due update applied; all zero when unknown.
    function nodeOf(address node) external view returns (NodeView memory);

    /// @notice Whether the node ever named this key, also one that it replaced since or that is not due yet.
    function isSigner(address node, address signer) external view returns (bool);

    /// @notice Status of a node, from one slot.
    function statusOf(address node) external view returns (uint8);

    /// @notice Checks that `nodes` cover every layer of the model once and in order, and may take work now.
    /// @return routePricePerKTok Sum of the prices, gwei of EFED per 1000 tokens.
    function checkRoute(bytes32 modelId, address[] calldata nodes) external view returns (uint256 routePricePerKTok);

    /// @notice Stake a node needs for each layer it serves, wei.
    function minStakePerLayer() external view returns (uint96);

    /// @notice Where stakes lie.
    function vault() external view returns (IStakeVault);

    /// @notice Where models are registered.
    function models() external view returns (IModelRegistry);
}
