// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {IDisputeGameTypes} from "../../contracts/interfaces/IDisputeGame.sol";
import {Fixture} from "./Fixture.sol";

/// @notice Commits of the nodes, signed by any key, and the proof that two of them are.
abstract contract DisputeFixture is Fixture {
    struct Proof {
        address node;
        IDisputeGameTypes.HopCommit a;
        bytes sigA;
        IDisputeGameTypes.HopCommit b;
        bytes sigB;
    }

    uint256 internal constant ROTATED_KEY = 0xB0B;
    address internal constant ACCUSER = address(0xACC);
    bytes32 internal constant JOB = keccak256("job");

    function _commitOf(bytes32 jobId, bytes32 output) internal view returns (IDisputeGameTypes.HopCommit memory c) {
        (c.jobId, c.specHash) = (jobId, keccak256("spec"));
        (c.hi, c.wireDtype, c.tokens) = (2, 1, 7);
        (c.modelId, c.shardRoot) = (modelId, keccak256("shard"));
        (c.inRoot, c.outRoot) = (keccak256("in"), output);
        c.epoch = _epoch();
    }

    /// @dev Two commits of the first node, with other outputs.
    function _lie(bytes32 jobId) internal view returns (Proof memory) {
        return _proof(nodes[0], _commitOf(jobId, "one"), _nodeKey(0), _commitOf(jobId, "other"), _nodeKey(0));
    }

    function _proof(
        address node,
        IDisputeGameTypes.HopCommit memory a,
        uint256 keyA,
        IDisputeGameTypes.HopCommit memory b,
        uint256 keyB
    ) internal view returns (Proof memory) {
        (bytes32 x, bytes32 y) = (disputes.commitDigest(a), disputes.commitDigest(b));
        Proof memory p = Proof(node, a, _sign(keyA, x), b, _sign(keyB, y));
        return y < x ? _swapped(p) : p;
    }

    function _swapped(Proof memory p) internal pure returns (Proof memory) {
        return Proof(p.node, p.b, p.sigB, p.a, p.sigA);
    }

    function _prove(Proof memory p) internal returns (uint256 slashed, uint256 reward) {
        vm.prank(ACCUSER);
        return disputes.proveEquivocation(p.node, p.a, p.sigA, p.b, p.sigB);
    }

    function _refused(Proof memory p, bytes memory error_) internal {
        uint256 before = vault.stakeOf(p.node).active;
        vm.expectRevert(error_);
        vm.prank(ACCUSER);
        disputes.proveEquivocation(p.node, p.a, p.sigA, p.b, p.sigB);
        _eq(vault.stakeOf(p.node).active, before);
    }
}
