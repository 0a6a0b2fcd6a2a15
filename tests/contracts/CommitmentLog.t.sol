// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {CommitmentLog} from "../../contracts/CommitmentLog.sol";
import {ICommitmentLogErrors} from "../../contracts/interfaces/ICommitmentLog.sol";
import {Fixture} from "./Fixture.sol";

contract CommitmentLogTest is Fixture {
    function _post(uint64 seq, bytes32 root) internal {
        vm.prank(nodes[0]);
        batches.post(_epoch(), seq, root, 7);
    }

    function test_post_isCommittedExactly() public {
        _at(2, 1);
        _eq(batches.nextSeq(nodes[0]), 0);
        _post(0, "root");
        _eq(batches.nextSeq(nodes[0]), 1);
        _true(batches.isCommitted(nodes[0], 0, "root", 7, 2), "committed");
        _true(!batches.isCommitted(nodes[0], 0, "other", 7, 2), "root");
        _true(!batches.isCommitted(nodes[0], 0, "root", 8, 2), "count");
        _true(!batches.isCommitted(nodes[0], 0, "root", 7, 3), "epoch");
        _true(!batches.isCommitted(nodes[0], 64, "root", 7, 2), "seq");
        _true(!batches.isCommitted(nodes[1], 0, "root", 7, 2), "node");
    }

    function test_RevertWhen_sequenceHasAGapOrRepeats() public {
        vm.expectRevert(abi.encodeWithSelector(ICommitmentLogErrors.WrongSequence.selector, 0, 1));
        _post(1, "root");
        _post(0, "root");
        vm.expectRevert(abi.encodeWithSelector(ICommitmentLogErrors.WrongSequence.selector, 1, 0));
        _post(0, "root");
        vm.expectRevert(abi.encodeWithSelector(ICommitmentLogErrors.WrongSequence.selector, 1, 64));
        _post(64, "root");
        _post(1, "root");
    }

    function test_RevertWhen_minedInAnotherEpochThanTheRootNames() public {
        _at(2, 2);
        vm.startPrank(nodes[0]);
        vm.expectRevert(abi.encodeWithSelector(ICommitmentLogErrors.WrongEpoch.selector, 2, 1));
        batches.post(1, 0, "root", 7);
        vm.expectRevert(abi.encodeWithSelector(ICommitmentLogErrors.WrongEpoch.selector, 2, 3));
        batches.post(3, 0, "root", 7);
        batches.post(2, 0, "root", 7);
        vm.stopPrank();
        _eq(batches.nextSeq(nodes[0]), 1);
    }

    function test_ring_neverOverwritesInsideTheWindow() public {
        for (uint64 i; i < 64; ++i) {
            _post(i, bytes32(uint256(i + 1)));
        }
        _eq(batches.nextSeq(nodes[0]), 64);
        vm.expectRevert(abi.encodeWithSelector(ICommitmentLogErrors.RingFull.selector, GENESIS + WINDOW));
        _post(64, "x");
        vm.warp(GENESIS + WINDOW);
        _post(64, "x");
        _eq(batches.nextSeq(nodes[0]), 65);
        _true(!batches.isCommitted(nodes[0], 0, bytes32(uint256(1)), 7, 1), "overwritten after the window");
        _true(batches.isCommitted(nodes[0], 1, bytes32(uint256(2)), 7, 1), "next one still there");
        vm.expectRevert(abi.encodeWithSelector(ICommitmentLogErrors.WrongSequence.selector, 65, 1));
        _post(1, "x");
    }

    function test_post_byARetiredNodeThatFinishesItsWork() public {
        vm.prank(nodes[0]);
        registry.retire();
        _post(0, "root");
    }

    function test_RevertWhen_notANodeOrEmpty() public {
        vm.expectRevert(abi.encodeWithSelector(ICommitmentLogErrors.NotANode.selector, address(this)));
        batches.post(_epoch(), 0, "root", 1);
        vm.startPrank(nodes[0]);
        vm.expectRevert(ICommitmentLogErrors.EmptyBatch.selector);
        batches.post(_epoch(), 0, 0, 1);
        vm.expectRevert(ICommitmentLogErrors.EmptyBatch.selector);
        batches.post(_epoch(), 0, "root", 0);
        vm.stopPrank();
    }

    function test_RevertWhen_windowOutOfBounds() public {
        vm.expectRevert(abi.encodeWithSelector(ICommitmentLogErrors.WindowOutOfBounds.selector, 0, 1, 30 days));
        new CommitmentLog(registry, GENESIS, EPOCH, 0);
    }

    /// forge-config: default.fuzz.runs = 24
    function testFuzz_post_sequencesOfAnyLength(uint8 count) public {
        for (uint64 i; i < count; ++i) {
            vm.warp(_now() + WINDOW / 64 + 1);
            _eq(batches.nextSeq(nodes[0]), i);
            _post(i, bytes32(uint256(i) + 1));
        }
        _eq(batches.nextSeq(nodes[0]), count);
    }
}
