// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {ISessionEscrowTypes} from "./ISessionEscrow.sol";

/// @title ICanaryRegistryTypes
interface ICanaryRegistryTypes {
    /// @notice What a node signs about a job, member by member as in the EIP-712 message of the same name.
    struct HopCommit {
        bytes32 jobId;
        bytes32 specHash;
        uint16 hop;
        uint16 lo;
        uint16 hi;
        uint8 profile;
        uint8 wireDtype;
        uint32 tokens;
        bytes32 modelId;
        bytes32 shardRoot;
        bytes32 inRoot;
        bytes32 outRoot;
        bytes32 tokensHash;
        bytes32 auxRoot;
        bytes32 prevCommit;
        uint64 epoch;
    }

    /// @notice A leaf shown to be a canary.
    /// @param commit What the leaf commits to. @param jobSeq Number of the job in its session.
    /// @param key The session that paid for the job.
    /// @param consent 65-byte signature of key.signer over Canary(bytes32 jobId,uint16 hop).
    /// @param nonce What makes the salt of the leaf secret.
    /// @param seq Number of the batch. @param count Its leaves. @param index Number of this leaf, from 0.
    /// @param proof Siblings from the leaf up.
    struct Opening {
        HopCommit commit;
        uint64 jobSeq;
        ISessionEscrowTypes.SessionKey key;
        bytes consent;
        bytes32 nonce;
        uint64 seq;
        uint32 count;
        uint32 index;
        bytes32[] proof;
    }
}

/// @title ICanaryRegistryErrors
interface ICanaryRegistryErrors {
    /// @notice Work of `epoch` goes through phase `wanted` in epoch + 1; now it is `phase` of `currentEpoch`.
    error WrongPhase(uint256 epoch, uint256 wanted, uint256 currentEpoch, uint256 phase);
    /// @notice There is no seed, hence no audit, for the epoch.
    error SeedNotFixed(uint256 epoch);
    /// @notice A call opens between one and `max` leaves.
    error OpeningsOutOfBounds(uint256 given, uint256 max);
    /// @notice The node has opened its canaries of the epoch.
    error AlreadyOpened(uint256 epoch, address node);
    /// @notice No session was ever opened by this key.
    error UnknownSession(bytes32 sessionId);
    /// @notice The commit is about another job than this number of this session.
    error WrongJob(bytes32 expected, bytes32 actual);
    /// @notice The caller is not this hop of the session's route.
    error NotTheHop(address caller, uint256 hop);
    /// @notice A commit stands in the batch of its own epoch or of the next one.
    error WrongCommitEpoch(uint256 batchEpoch, uint256 commitEpoch);
    /// @notice The session's signer did not agree to a canary here.
    error NoConsent(address signer);
    /// @notice The proof does not fit leaf `index` of a batch of `count`.
    error BadProof(uint256 index, uint256 count, uint256 length);
    /// @notice The caller has no such batch on chain for the epoch.
    error UnknownBatch(uint256 epoch, uint256 seq, bytes32 root);
    /// @notice Leaves stand in ascending order, each once.
    error LeavesNotAscending(bytes32 previous, bytes32 leaf);
    /// @notice The leaf was not audited, so there is nothing to explain.
    error LeafNotSampled(bytes32 leaf, uint256 drawnPpm, uint256 ratePpm);
}

/// @title ICanaryRegistryEvents
interface ICanaryRegistryEvents {
    event CanaryOpened(address indexed node, uint64 indexed epoch, bytes32[] leaves);
}

/// @title ICanaryRegistry
/// @notice Where a node shows, once every verdict is committed, that what it computed wrongly was agreed with the client.
interface ICanaryRegistry is ICanaryRegistryTypes, ICanaryRegistryErrors, ICanaryRegistryEvents {
    /// @notice Opens all audited canaries of the caller's epoch `e`, in ascending order of their leaves; once, in phase 1
    /// of epoch e+1.
    /// @dev The leaf of an opening is K(00 | "EFL.hop.1" | EIP-712 digest of commit | salt) with salt
    /// K(00 | "EFL.canary.1" | jobId | hop | K(consent) | nonce): docs/protocol.md.
    function open(uint64 e, Opening[] calldata openings) external;

    /// @notice EIP-712 digest of Canary(bytes32 jobId,uint16 hop), which a session's signer signs to agree.
    function consentDigest(bytes32 jobId, uint16 hop) external view returns (bytes32);

    /// @notice The hop leaf that an opening is about; checks nothing.
    function leafOf(Opening calldata opening) external view returns (bytes32);

    /// @notice What verifiers attest who failed exactly these leaves, given in ascending order.
    function faultDigest(bytes32 seed, bytes32[] calldata leaves) external pure returns (bytes32);
}
