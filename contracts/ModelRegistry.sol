// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {MerkleProof} from "@openzeppelin/contracts/utils/cryptography/MerkleProof.sol";
import {IModelRegistry} from "./interfaces/IModelRegistry.sol";

/// @title ModelRegistry
/// @notice Anyone publishes a model; nobody, not even its owner, changes it.
contract ModelRegistry is IModelRegistry {
    uint8 private constant ACTIVE = 1;
    uint8 private constant DEPRECATED = 2;
    uint8 private constant FLOAT = 0;
    uint8 private constant EXACT = 1;

    /// @dev Layer numbers from 0xFFFD on stand for files, head and embedding in the leaves of the weights tree.
    uint16 public constant MAX_LAYERS = 0xFFFC;
    uint16 public constant MAX_RANK_BPS = 10_000;
    uint256 public constant MAX_URI_LENGTH = 2_048;

    mapping(bytes32 modelId => Model) private _models;

    /// @inheritdoc IModelRegistry
    function register(bytes32 salt, ModelParams calldata params, bytes32 manifestHash, string calldata uri)
        external
        returns (bytes32 modelId)
    {
        modelId = keccak256(abi.encode(msg.sender, salt));
        // INVARIANT: an id names the same weights for ever.
        require(_models[modelId].status == 0, ModelExists(modelId));
        _checkParams(params);
        // INVARIANT: events stay small enough to be served by every RPC.
        require(bytes(uri).length <= MAX_URI_LENGTH, UriTooLong(bytes(uri).length, MAX_URI_LENGTH));
        _models[modelId] = Model({
            weightsRoot: params.weightsRoot,
            owner: msg.sender,
            layers: params.layers,
            hidden: params.hidden,
            rankBps: params.rankBps,
            quant: params.quant,
            profile: params.profile,
            status: ACTIVE,
            constantsHash: params.constantsHash
        });
        _emitRegistered(modelId, params, manifestHash, uri);
    }

    /// @inheritdoc IModelRegistry
    function deprecate(bytes32 modelId) external {
        Model storage m = _models[modelId];
        // INVARIANT: only what exists can end.
        require(m.status != 0, UnknownModel(modelId));
        // INVARIANT: only the owner ends a model.
        require(m.owner == msg.sender, NotModelOwner(m.owner, msg.sender));
        // INVARIANT: deprecated is final.
        require(m.status == ACTIVE, ModelDeprecatedAlready(modelId));
        m.status = DEPRECATED;
        emit ModelDeprecated(modelId);
    }

    /// @inheritdoc IModelRegistry
    function modelOf(bytes32 modelId) external view returns (Model memory) {
        return _models[modelId];
    }

    /// @inheritdoc IModelRegistry
    function shapeOf(bytes32 modelId) external view returns (uint16 layers, uint8 status) {
        Model storage m = _models[modelId];
        return (m.layers, m.status);
    }

    /// @inheritdoc IModelRegistry
    function verifyTensor(bytes32 modelId, bytes32 leaf, bytes32[] calldata proof) external view returns (bool) {
        bytes32 root = _models[modelId].weightsRoot;
        return root != 0 && MerkleProof.verifyCalldata(proof, root, leaf);
    }

    function _checkParams(ModelParams calldata p) private pure {
        // INVARIANT: a model is bound to its weights.
        require(p.weightsRoot != 0, EmptyWeightsRoot());
        // INVARIANT: layer numbers do not collide with the reserved ones.
        require(p.layers != 0 && p.layers <= MAX_LAYERS, LayersOutOfBounds(p.layers, 1, MAX_LAYERS));
        // INVARIANT: activations have a width.
        require(p.hidden != 0, ZeroHidden());
        // INVARIANT: at most all singular values are kept.
        require(p.rankBps <= MAX_RANK_BPS, RankOutOfBounds(p.rankBps, MAX_RANK_BPS));
        // INVARIANT: how results are compared is known.
        require(p.profile == FLOAT || p.profile == EXACT, UnknownProfile(p.profile));
        // INVARIANT: exact arithmetic, and only exact arithmetic, names the constants its results depend on.
        require((p.profile == EXACT) == (p.constantsHash != 0), ConstantsDoNotFitProfile(p.profile, p.constantsHash));
    }

    function _emitRegistered(bytes32 id, ModelParams calldata p, bytes32 manifestHash, string calldata uri) private {
        emit ModelRegistered(
            id,
            msg.sender,
            p.weightsRoot,
            manifestHash,
            p.layers,
            p.hidden,
            p.rankBps,
            p.quant,
            p.profile,
            p.constantsHash,
            p.certificateHash,
            uri
        );
    }
}
