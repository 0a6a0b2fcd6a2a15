// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

/// @title IRewardPoolTypes
interface IRewardPoolTypes {
    /// @notice Parameters, fixed at deployment.
    /// @param e0 Most that the first epochs mint, wei.
    /// @param halvingEpochs Epochs until that halves.
    /// @param phiBps Most that an epoch mints as a share of what clients paid in it.
    /// @param serversBps Share of the nodes.
    /// @param verifiersBps Share of the verifiers. The treasury gets the rest.
    /// @param stakeCapBps Highest weight of a node as a share of its active stake.
    struct Params {
        uint96 e0;
        uint32 halvingEpochs;
        uint16 phiBps;
        uint16 serversBps;
        uint16 verifiersBps;
        uint16 stakeCapBps;
    }
}

/// @title IRewardPoolErrors
interface IRewardPoolErrors {
    /// @notice A parameter is outside its bounds.
    /// @param name Name of the parameter.
    /// @param value Value given.
    /// @param min Least value allowed.
    /// @param max Greatest value allowed.
    error ParamOutOfBounds(bytes32 name, uint256 value, uint256 min, uint256 max);
    /// @notice The treasury cannot be address 0.
    error InvalidTreasury();
    /// @notice Epoch `epoch` is weighed in the last third of epoch + 1.
    /// @param epoch Epoch in the call.
    /// @param currentEpoch Epoch of the block.
    /// @param phase Third of that epoch: 0 commit, 1 reveal, 2 tally.
    error NotWeighable(uint256 epoch, uint256 currentEpoch, uint256 phase);
    /// @notice There are reveals about the node that finalize has not counted.
    /// @param epoch Epoch in the call.
    /// @param node Account of the node.
    error NotFinalized(uint256 epoch, address node);
    /// @notice Epoch `epoch` can be claimed from epoch + 2 on.
    /// @param epoch Epoch in the call.
    /// @param currentEpoch Epoch of the block.
    error NotClaimable(uint256 epoch, uint256 currentEpoch);
    /// @notice Nothing is left for the account in these epochs.
    /// @param account Account that would be paid.
    error NothingToClaim(address account);
}

/// @title IRewardPoolEvents
interface IRewardPoolEvents {
    /// @notice The weight of a node for an epoch was recorded.
    /// @param epoch Epoch of the work.
    /// @param node Account of the node.
    /// @param work What the node was credited in the epoch, wei.
    /// @param trust Trust of the node, ppm.
    /// @param weight Weight recorded, wei; 0 when the node is not active.
    event Weighed(uint64 indexed epoch, address indexed node, uint256 work, uint256 trust, uint256 weight);
    /// @notice A reward of an epoch was minted.
    /// @param epoch Epoch of the work.
    /// @param account Receiver of the tokens.
    /// @param kind 0 node, 1 verifier, 2 treasury.
    /// @param amount Tokens minted, wei.
    event RewardClaimed(uint64 indexed epoch, address indexed account, uint8 kind, uint256 amount);
}

/// @title IRewardPool
/// @notice Mints each epoch's emission to nodes by work and trust, to verifiers by points, and to the treasury.
interface IRewardPool is IRewardPoolTypes, IRewardPoolErrors, IRewardPoolEvents {
    /// @notice Records the weight of each node for epoch `e`; last third of epoch e+1. Skips what is recorded. Anyone.
    function weigh(uint64 e, address[] calldata nodes) external;

    /// @notice Mints the caller's rewards as a node. Epochs without any are skipped.
    function claim(uint64[] calldata epochs) external;

    /// @notice Mints the caller's rewards as a verifier. Epochs without any are skipped.
    function claimVerifier(uint64[] calldata epochs) external;

    /// @notice Mints the treasury's share to the treasury. Anyone.
    function claimTreasury(uint64[] calldata epochs) external;

    /// @notice min(e0 >> ((e - 1) / halvingEpochs), phiBps * volume / 10000, cap - supply), wei.
    function emissionOf(uint64 e) external view returns (uint256);

    /// @notice Weight of a node for epoch `e`, wei; also after its claim.
    function weightOf(uint64 e, address node) external view returns (uint256);

    /// @notice Sum of the weights of epoch `e`, wei.
    function totalWeight(uint64 e) external view returns (uint256);

    /// @notice What `account` can claim for epoch `e` in all its roles, wei.
    function claimable(uint64 e, address account) external view returns (uint256);

    /// @notice Parameters.
    function params() external view returns (Params memory);

    /// @notice Receiver of the treasury's share.
    function treasury() external view returns (address);
}
