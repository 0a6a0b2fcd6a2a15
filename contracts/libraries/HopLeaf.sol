// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";
import {MessageHashUtils} from "@openzeppelin/contracts/utils/cryptography/MessageHashUtils.sol";
import {ICanaryRegistryErrors, ICanaryRegistryTypes} from "../interfaces/ICanaryRegistry.sol";

/// @title HopLeaf
/// @notice The hashes between a node's commit to a job and the batch root on chain, as nodes and verifiers compute them.
/// @dev First byte: 00 leaf, 01 inner node, 02 root with length. Then a 16-byte tag, zero padded. Integers are packed.
library HopLeaf {
    bytes32 private constant DOMAIN_TYPEHASH =
        keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)");
    bytes32 private constant COMMIT_TYPEHASH = keccak256(
        "HopCommit(bytes32 jobId,bytes32 specHash,uint16 hop,uint16 lo,uint16 hi,uint8 profile,uint8 wireDtype,uint32 tokens,bytes32 modelId,bytes32 shardRoot,bytes32 inRoot,bytes32 outRoot,bytes32 tokensHash,bytes32 auxRoot,bytes32 prevCommit,uint64 epoch)"
    );
    bytes32 private constant CANARY_TYPEHASH = keccak256("Canary(bytes32 jobId,uint16 hop)");

    bytes1 private constant LEAF = 0x00;
    bytes1 private constant NODE = 0x01;
    bytes1 private constant ROOT = 0x02;
    bytes16 private constant TAG_JOB = "EFL.job.1";
    bytes16 private constant TAG_HOP = "EFL.hop.1";
    bytes16 private constant TAG_BATCH = "EFL.batch.1";
    bytes16 private constant TAG_CANARY = "EFL.canary.1";
    bytes16 private constant TAG_FAULT = "EFL.fault.node.1";

    uint256 private constant PPM = 1e6;

    /// @notice EIP-712 domain of what nodes and clients sign off chain; `log` is the CommitmentLog.
    function domain(address log) internal view returns (bytes32) {
        return keccak256(abi.encode(DOMAIN_TYPEHASH, keccak256("EFL"), keccak256("1"), block.chainid, log));
    }

    /// @notice What a session's signer signs to agree to a canary.
    function consentDigest(bytes32 separator, bytes32 jobId, uint16 hop) internal pure returns (bytes32) {
        return MessageHashUtils.toTypedDataHash(separator, keccak256(abi.encode(CANARY_TYPEHASH, jobId, hop)));
    }

    /// @notice What a node's signer signs for a commit.
    function commitDigest(bytes32 separator, ICanaryRegistryTypes.HopCommit calldata c)
        internal
        pure
        returns (bytes32)
    {
        return MessageHashUtils.toTypedDataHash(separator, keccak256(abi.encode(COMMIT_TYPEHASH, c)));
    }

    /// @notice Identifier of a session's job.
    function jobOf(bytes32 sessionId, uint64 jobSeq) internal pure returns (bytes32) {
        return keccak256(abi.encodePacked(LEAF, TAG_JOB, sessionId, jobSeq));
    }

    /// @notice Leaf of a commit whose salt holds a consent.
    function canaryLeaf(bytes32 separator, ICanaryRegistryTypes.Opening calldata o) internal pure returns (bytes32) {
        bytes32 salt =
            keccak256(abi.encodePacked(LEAF, TAG_CANARY, o.commit.jobId, o.commit.hop, keccak256(o.consent), o.nonce));
        return keccak256(abi.encodePacked(LEAF, TAG_HOP, commitDigest(separator, o.commit), salt));
    }

    /// @notice Root of a batch in which `leaf` stands as the opening says.
    function batchRoot(address node, uint64 epoch, bytes32 leaf, ICanaryRegistryTypes.Opening calldata o)
        internal
        pure
        returns (bytes32)
    {
        uint256 index = o.index;
        // INVARIANT: a path of another length would end at an inner node, an index beyond the count at a pad.
        require(
            index < o.count && o.proof.length == Math.log2(o.count, Math.Rounding.Ceil),
            ICanaryRegistryErrors.BadProof(index, o.count, o.proof.length)
        );
        for (uint256 i; i < o.proof.length; ++i) {
            leaf = index & 1 == 0
                ? keccak256(abi.encodePacked(NODE, leaf, o.proof[i]))
                : keccak256(abi.encodePacked(NODE, o.proof[i], leaf));
            index >>= 1;
        }
        return keccak256(abi.encodePacked(ROOT, TAG_BATCH, node, epoch, o.seq, o.count, leaf));
    }

    /// @notice What verifiers attest beside a failure: the leaves that failed, ascending. Seeded, so that nobody searches
    /// for leaves beforehand whose digests look alike.
    function faultDigest(bytes32 seed, bytes32[] memory leaves) internal pure returns (bytes32) {
        return keccak256(abi.encodePacked(ROOT, TAG_FAULT, seed, uint32(leaves.length), leaves));
    }

    /// @notice Where the seed's draw puts a leaf, ppm: floor(uint256(K(seed | leaf)) * 1e6 / 2^256). It is audited when
    /// that is below its node's audit rate.
    function drawnPpm(bytes32 seed, bytes32 leaf) internal pure returns (uint256) {
        uint256 x = uint256(keccak256(abi.encodePacked(seed, leaf)));
        // In halves, because the product has up to 276 bits.
        return ((x >> 128) * PPM + ((x & type(uint128).max) * PPM >> 128)) >> 128;
    }
}
