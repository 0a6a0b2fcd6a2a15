// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {MessageHashUtils} from "@openzeppelin/contracts/utils/cryptography/MessageHashUtils.sol";
import {IDisputeGameTypes} from "../interfaces/IDisputeGame.sol";

/// @title HopCommitHash
/// @notice The EIP-712 digest of a node's commit to a job, as nodes and verifiers compute it.
library HopCommitHash {
    bytes32 private constant DOMAIN_TYPEHASH =
        keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)");
    bytes32 private constant COMMIT_TYPEHASH = keccak256(
        "HopCommit(bytes32 jobId,bytes32 specHash,uint16 hop,uint16 lo,uint16 hi,uint8 profile,uint8 wireDtype,uint32 tokens,bytes32 modelId,bytes32 shardRoot,bytes32 inRoot,bytes32 outRoot,bytes32 tokensHash,bytes32 auxRoot,bytes32 prevCommit,uint64 epoch)"
    );

    /// @notice EIP-712 domain of what nodes and clients sign off chain; `log` is the CommitmentLog.
    function domain(address log) internal view returns (bytes32) {
        return keccak256(abi.encode(DOMAIN_TYPEHASH, keccak256("EFL"), keccak256("1"), block.chainid, log));
    }

    /// @notice What a node's signer signs for a commit.
    function commitDigest(bytes32 separator, IDisputeGameTypes.HopCommit calldata c) internal pure returns (bytes32) {
        return MessageHashUtils.toTypedDataHash(separator, keccak256(abi.encode(COMMIT_TYPEHASH, c)));
    }
}
