// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {IModelRegistry} from "./IModelRegistry.sol";
import {IStakeVault} from "./IStakeVault.sol";

/// @title INodeRegistryTypes
interface INodeRegistryTypes {
    /// @notice A node as it is now; `status`: 0 none, 1 active, 2 paused, 3 retired.
    /// @param signer Hot key that signs commits and receipts.
    /// @param lo First layer served. @param hi One past the last layer served.
    /// @param pricePerKTok Gwei of EFED per 1000 tokens, for the whole range.
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
    error AlreadyRegistered(address node);
    /// @notice The caller's status does not allow this.
    error WrongNodeStatus(address node, uint8 status);
    /// @notice The model is unknown or deprecated.
    error ModelNotActive(bytes32 modelId);
    /// @notice The range is empty or goes past the model's last layer.
    error BadLayerRange(uint256 lo, uint256 hi, uint256 layers);
    /// @notice The signer cannot be address 0.
    error InvalidSigner();
    /// @notice The endpoint is empty or too long.
    error EndpointLengthOutOfBounds(uint256 length, uint256 max);
    /// @notice The stake does not cover the range.
    error StakeTooLow(address node, uint256 needed, uint256 available);
    /// @notice A route has between one and `max` nodes.
    error RouteLengthOutOfBounds(uint256 length, uint256 max);
    /// @notice Node number `index` should start at layer `expected`.
    error RouteGap(uint256 index, uint256 expected, uint256 lo);
    /// @notice The route stops before the last layer.
    error RouteIncomplete(uint256 end, uint256 layers);
    /// @notice The node serves another model.
    error WrongModel(address node, bytes32 expected, bytes32 actual);
    /// @notice The node is paused, retired or unknown.
    error NodeNotActive(address node, uint8 status);
    /// @notice The node is jailed in the vault until `until` (unix seconds).
    error NodeJailed(address node, uint256 until);
}

/// @title INodeRegistryEvents
interface INodeRegistryEvents {
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
    event NodeUpdated(address indexed node, uint48 price, address signer, uint64 fromEpoch);
    event EndpointUpdated(address indexed node, string endpoint);
    event NodePaused(address indexed node);
    event NodeResumed(address indexed node);
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
