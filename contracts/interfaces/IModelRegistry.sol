// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

/// @title IModelRegistryTypes
interface IModelRegistryTypes {
    /// @notice What a publisher registers.
    /// @param weightsRoot Root of the sorted-pair Merkle tree over the tensors.
    /// @param layers Transformer layers.
    /// @param hidden Width of the hidden state.
    /// @param rankBps Kept share of the singular values, basis points; 10000 is dense.
    /// @param quant 0 none, 1 int8, 2 packed integers of 2 to 6 bits.
    /// @param profile 0 float, 1 exact.
    /// @param constantsHash SHA-256 of the constant tables of the exact arithmetic; zero for the float profile.
    /// @param certificateHash SHA-256 of the measured quality in the manifest; zero when there is none.
    struct ModelParams {
        bytes32 weightsRoot;
        uint16 layers;
        uint16 hidden;
        uint16 rankBps;
        uint8 quant;
        uint8 profile;
        bytes32 constantsHash;
        bytes32 certificateHash;
    }

    /// @notice A registered model, in three slots, the third only used by the exact profile. Only `status` can change.
    /// @param weightsRoot Root of the sorted-pair Merkle tree over the tensors.
    /// @param owner Account that registered it.
    /// @param layers Transformer layers.
    /// @param hidden Width of the hidden state.
    /// @param rankBps Kept share of the singular values, basis points; 10000 is dense.
    /// @param quant 0 none, 1 int8, 2 packed integers of 2 to 6 bits.
    /// @param profile 0 float, 1 exact.
    /// @param status 0 none, 1 active, 2 deprecated.
    /// @param constantsHash SHA-256 of the constant tables of the exact arithmetic; zero for the float profile.
    struct Model {
        bytes32 weightsRoot;
        address owner;
        uint16 layers;
        uint16 hidden;
        uint16 rankBps;
        uint8 quant;
        uint8 profile;
        uint8 status;
        bytes32 constantsHash;
    }
}

/// @title IModelRegistryErrors
interface IModelRegistryErrors {
    /// @notice The owner has used this salt already.
    /// @param modelId Id that the owner and the salt give.
    error ModelExists(bytes32 modelId);
    /// @notice No such model.
    /// @param modelId Id in the call.
    error UnknownModel(bytes32 modelId);
    /// @notice The model was deprecated before.
    /// @param modelId Id in the call.
    error ModelDeprecatedAlready(bytes32 modelId);
    /// @notice Only the owner may do this.
    /// @param owner Account that registered the model.
    /// @param caller Account that sent the transaction.
    error NotModelOwner(address owner, address caller);
    /// @notice A model needs a weights root.
    error EmptyWeightsRoot();
    /// @notice The number of layers is out of bounds.
    /// @param layers Value given.
    /// @param min Least value allowed.
    /// @param max Greatest value allowed.
    error LayersOutOfBounds(uint256 layers, uint256 min, uint256 max);
    /// @notice The hidden width cannot be 0.
    error ZeroHidden();
    /// @notice More than all singular values cannot be kept.
    /// @param rankBps Value given, basis points.
    /// @param max Greatest value allowed, basis points.
    error RankOutOfBounds(uint256 rankBps, uint256 max);
    /// @notice There are two profiles: 0 float, 1 exact.
    /// @param profile Value given.
    error UnknownProfile(uint8 profile);
    /// @notice Exact models have a hash of their constants, float models have none.
    /// @param profile 0 float, 1 exact.
    /// @param constantsHash Value given.
    error ConstantsDoNotFitProfile(uint8 profile, bytes32 constantsHash);
    /// @notice The URI is too long for an event.
    /// @param length Length of the URI, bytes.
    /// @param max Greatest length allowed, bytes.
    error UriTooLong(uint256 length, uint256 max);
}

/// @title IModelRegistryEvents
interface IModelRegistryEvents {
    /// @notice A model was registered.
    /// @param modelId keccak256(abi.encode(owner, salt)).
    /// @param owner Account that registered it.
    /// @param weightsRoot Root of the sorted-pair Merkle tree over the tensors.
    /// @param manifestHash SHA-256 of the manifest file.
    /// @param layers Transformer layers.
    /// @param hidden Width of the hidden state.
    /// @param rankBps Kept share of the singular values, basis points; 10000 is dense.
    /// @param quant 0 none, 1 int8, 2 packed integers of 2 to 6 bits.
    /// @param profile 0 float, 1 exact.
    /// @param constantsHash SHA-256 of the constant tables of the exact arithmetic; zero for the float profile.
    /// @param certificateHash SHA-256 of the measured quality in the manifest; zero when there is none.
    /// @param uri Where the publisher serves the files.
    event ModelRegistered(
        bytes32 indexed modelId,
        address indexed owner,
        bytes32 weightsRoot,
        bytes32 manifestHash,
        uint16 layers,
        uint16 hidden,
        uint16 rankBps,
        uint8 quant,
        uint8 profile,
        bytes32 constantsHash,
        bytes32 certificateHash,
        string uri
    );
    /// @notice A model takes no new registrations and no new sessions from now on.
    /// @param modelId Id of the model.
    event ModelDeprecated(bytes32 indexed modelId);
}

/// @title IModelRegistry
/// @notice Published models by content. New weights are a new id, so that vouchers and receipts bind to exact weights.
interface IModelRegistry is IModelRegistryTypes, IModelRegistryErrors, IModelRegistryEvents {
    /// @notice Registers a model under keccak256(abi.encode(msg.sender, salt)).
    function register(bytes32 salt, ModelParams calldata params, bytes32 manifestHash, string calldata uri)
        external
        returns (bytes32 modelId);

    /// @notice Ends a model: no new registrations and no new sessions. Owner only.
    function deprecate(bytes32 modelId) external;

    /// @notice A model; all zero when unknown.
    function modelOf(bytes32 modelId) external view returns (Model memory);

    /// @notice Layers and status of a model, from one slot.
    function shapeOf(bytes32 modelId) external view returns (uint16 layers, uint8 status);

    /// @notice Whether `leaf` (double hashed) is a tensor of the model.
    function verifyTensor(bytes32 modelId, bytes32 leaf, bytes32[] calldata proof) external view returns (bool);
}
