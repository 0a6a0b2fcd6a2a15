// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {ISeatRegistryErrors} from "../../contracts/interfaces/ISeatRegistry.sol";
import {IVerifierCommitteeErrors, IVerifierCommitteeTypes} from "../../contracts/interfaces/IVerifierCommittee.sol";
import {Fixture} from "./Fixture.sol";

/// @notice What final verdicts do to nodes.
contract NodeJudgementTest is Fixture {
    function _alpha(address node) internal view returns (uint64 a) {
        (a,,,,) = committee.trustState(node);
    }

    function _beta(address node) internal view returns (uint64 b) {
        (, b,,,) = committee.trustState(node);
    }

    function test_pass_movesTrust() public {
        _judge(2, nodes, _verdict(10, 0, false));
        for (uint256 i; i < 2; ++i) {
            _eq(_alpha(nodes[i]), 1e6);
            _eq(_beta(nodes[i]), 0);
            _eq(committee.trustOf(nodes[i]), 333_333);
            _eq(committee.standingOf(nodes[i]), 2);
            // 100000 + 400000 * (1e6 - 333333) / 1e6
            _eq(committee.auditRate(nodes[i]), 366_666);
            _true(committee.isFinalized(2, nodes[i]) && !committee.isPending(2, nodes[i]), "closed");
        }
    }

    function test_newNode_isOnProbationAndAuditedMost() public view {
        _eq(committee.trustOf(nodes[0]), 0);
        _eq(committee.standingOf(nodes[0]), 1);
        _eq(committee.auditRate(nodes[0]), 500_000);
    }

    function test_trust_decaysWhileIdle() public {
        _judge(2, nodes, _verdict(100, 0, false));
        _eq(committee.trustOf(nodes[0]), uint256(1e6 * 10e6) / 12e6);
        _at(4, 0);
        uint256 a = uint256(10e6) - 10e6 / 64;
        _eq(committee.trustOf(nodes[0]), 1e6 * a / (a + 2e6));
        _eq(_alpha(nodes[0]), 10e6);
    }

    function test_trust_equalsTheIntegerRule_overAHistory() public {
        uint8[5] memory passed = [10, 7, 20, 3, 10];
        uint8[5] memory failed = [0, 0, 2, 0, 0];
        uint64[5] memory epochs = [uint64(2), 3, 6, 30, 31];
        uint256 a;
        uint256 b;
        for (uint256 i; i < 5; ++i) {
            for (uint256 k = i == 0 ? epochs[i] : epochs[i - 1]; k < epochs[i]; ++k) {
                a -= a >> 6;
                b -= b >> 6;
            }
            if (failed[i] == 0) {
                a += uint256(passed[i]) * 1e5;
            } else {
                a >>= 2;
                b += uint256(failed[i]) * 50e5;
            }
            _judge(epochs[i], nodes, _verdict(passed[i], failed[i], false));
            _eq(_alpha(nodes[0]), a);
            _eq(_beta(nodes[0]), b);
            _eq(committee.trustOf(nodes[0]), 1e6 * a / (a + b + 2e6));
        }
    }

    function test_fail_withoutSeverityExcludesButDoesNotSlash() public {
        _judge(2, nodes, _verdict(9, 1, false));
        _eq(_beta(nodes[0]), 50e5);
        _eq(committee.standingOf(nodes[0]), 0);
        (,,, uint16 offences, uint32 until) = committee.trustState(nodes[0]);
        _eq(offences, 0);
        _eq(until, 22);
        _eq(vault.stakeOf(nodes[0]).active, NODE_STAKE);
        _eq(vault.jailedUntil(nodes[0]), 0);
    }

    function test_fail_thatLeavesTrustDoesNotExclude() public {
        _judge(2, nodes, _verdict(255, 0, false));
        _judge(3, nodes, _verdict(255, 0, false));
        _judge(4, nodes, _verdict(255, 0, false));
        _judge(5, nodes, _verdict(9, 1, false));
        // About 75e6 / 4 against 5e6 + 2e6.
        _true(committee.trustOf(nodes[0]) > 700_000, "trust left");
        _eq(committee.standingOf(nodes[0]), 2);
    }

    function test_severe_slashesExcludesAndJails() public {
        _judge(2, _one(nodes[0]), _verdict(5, 5, true));
        _eq(vault.stakeOf(nodes[0]).active, NODE_STAKE * 8 / 10);
        (,,, uint16 offences, uint32 until) = committee.trustState(nodes[0]);
        _eq(offences, 1);
        _eq(until, 22);
        _eq(vault.jailedUntil(nodes[0]), committee.epochStart(22));
        _eq(committee.standingOf(nodes[0]), 0);
        _judge(3, _one(nodes[0]), _verdict(0, 10, true));
        _eq(vault.stakeOf(nodes[0]).active, 0);
        (,,, offences, until) = committee.trustState(nodes[0]);
        _eq(offences, 2);
        _eq(until, 23);
        _judge(4, _one(nodes[0]), _verdict(0, 10, true));
        _eq(vault.stakeOf(nodes[0]).active, 0);
    }

    function test_slash_reachesUnbondingOfANodeThatLeaves() public {
        vm.startPrank(nodes[0]);
        registry.retire();
        vault.unbond(NODE_STAKE);
        vm.stopPrank();
        _judge(2, _one(nodes[0]), _verdict(0, 10, true));
        _eq(vault.stakeOf(nodes[0]).unbonding, NODE_STAKE * 8 / 10);
    }

    function test_severe_needsTwoThirdsOfTheDrawn() public {
        _at(2, 0);
        _fixSeed(2);
        Report[] memory r = _reports(2, _one(nodes[0]), _verdict(5, 5, false));
        _eq(r.length, 3);
        r[0].verdicts[0] = _verdict(5, 5, true);
        _submit(2, r);
        committee.finalize(2, _one(nodes[0]));
        _eq(vault.stakeOf(nodes[0]).active, NODE_STAKE);
        _eq(committee.standingOf(nodes[0]), 0);
    }

    function test_oneLiarChangesNothing() public {
        _at(2, 0);
        _fixSeed(2);
        Report[] memory r = _reports(2, _one(nodes[0]), _verdict(10, 0, false));
        r[1].verdicts[0] = _verdict(0, 10, true);
        _submit(2, r);
        committee.finalize(2, _one(nodes[0]));
        _eq(_alpha(nodes[0]), 1e6);
        _eq(_beta(nodes[0]), 0);
    }

    function test_noQuorum_leavesTrustAlone() public {
        _at(2, 0);
        _fixSeed(2);
        Report[] memory r = _reports(2, _one(nodes[0]), _verdict(0, 10, true));
        assembly ("memory-safe") {
            mstore(r, 1)
        }
        _submit(2, r);
        committee.finalize(2, nodes);
        _eq(_beta(nodes[0]), 0);
        _true(committee.isFinalized(2, nodes[0]), "closed all the same");
        _true(!committee.tallyOf(2, nodes[0]).quorum, "no quorum");
        _eq(vault.stakeOf(nodes[0]).active, NODE_STAKE);
    }

    function test_quorum_ofTwoThirdsIsEnough() public {
        _at(2, 0);
        _fixSeed(2);
        Report[] memory r = _reports(2, _one(nodes[0]), _verdict(0, 10, true));
        assembly ("memory-safe") {
            mstore(r, 2)
        }
        _submit(2, r);
        committee.finalize(2, _one(nodes[0]));
        _eq(vault.stakeOf(nodes[0]).active, NODE_STAKE * 8 / 10);
    }

    function test_finalize_twiceCountsOnce() public {
        _judge(2, nodes, _verdict(10, 0, false));
        committee.finalize(2, nodes);
        address[] memory twice = new address[](2);
        (twice[0], twice[1]) = (nodes[0], nodes[0]);
        committee.finalize(2, twice);
        _eq(_alpha(nodes[0]), 1e6);
    }

    function test_RevertWhen_finalizingWithoutASeed() public {
        _at(3, 2);
        vm.expectRevert(abi.encodeWithSelector(ISeatRegistryErrors.SeedNotFixed.selector, 2));
        committee.finalize(2, nodes);
    }

    function test_reentry_needsMoreTrustThanTheta() public {
        // Excluded until 22 with beta 5e6, which decays; then passes bring trust between theta and re-entry.
        _judge(2, _one(nodes[0]), _verdict(0, 1, false));
        _at(22, 0);
        _eq(committee.standingOf(nodes[0]), 1);
        uint64 e = 22;
        while (committee.trustOf(nodes[0]) < 300_000) {
            _judge(e++, _one(nodes[0]), _verdict(5, 0, false));
        }
        _true(committee.trustOf(nodes[0]) < 400_000, "between the marks");
        _eq(committee.standingOf(nodes[0]), 1);
        while (committee.trustOf(nodes[0]) < 400_000) {
            _judge(e++, _one(nodes[0]), _verdict(5, 0, false));
        }
        _eq(committee.standingOf(nodes[0]), 2);
        (,,,, uint32 until) = committee.trustState(nodes[0]);
        _eq(until, 0);
    }

    /// forge-config: default.fuzz.runs = 24
    function testFuzz_trust_staysInPpm(uint8[6] memory passed, uint8[6] memory failed) public {
        for (uint64 i; i < 6; ++i) {
            _judge(2 + i, _one(nodes[0]), _verdict(passed[i], failed[i] % 128, false));
            _atMost(committee.trustOf(nodes[0]), 1e6);
        }
    }
}

/// @notice What final verdicts do to verifiers.
contract VerifierJudgementTest is Fixture {
    address[] internal list;

    function setUp() public override {
        super.setUp();
        _at(2, 0);
        _fixSeed(2);
        list = _one(nodes[0]);
    }

    function _active(address v) internal view returns (uint256) {
        return vault.stakeOf(v).active;
    }

    function test_points_areTheFinalUnits() public {
        Report[] memory r = _reports(2, list, _verdict(10, 0, false));
        // Claiming more work than the median pays nothing.
        r[0].verdicts[0] = _verdict(255, 0, false);
        _submit(2, r);
        committee.finalize(2, list);
        for (uint256 i; i < 3; ++i) {
            committee.judgeVerifier(2, r[i].verifier, r[i].nodes);
            _eq(committee.pointsOf(2, r[i].verifier), 10);
        }
        _eq(committee.totalPoints(2), 30);
    }

    function test_deviation_isSlashed() public {
        Report[] memory r = _reports(2, list, _verdict(10, 0, false));
        r[2].verdicts[0] = _verdict(9, 1, false);
        _submit(2, r);
        committee.finalize(2, list);
        committee.judgeVerifier(2, r[2].verifier, list);
        _eq(_active(r[2].verifier), SEAT_STAKE - SEAT_STAKE * 200 / 10_000);
        _eq(committee.pointsOf(2, r[2].verifier), 0);
    }

    function test_lazyPass_isSlashedWhenTheOthersFail() public {
        Report[] memory r = _reports(2, list, _verdict(0, 10, true));
        r[0].verdicts[0] = _verdict(10, 0, false);
        _submit(2, r);
        committee.finalize(2, list);
        committee.judgeVerifier(2, r[0].verifier, list);
        _eq(_active(r[0].verifier), SEAT_STAKE - SEAT_STAKE * 200 / 10_000);
        committee.judgeVerifier(2, r[1].verifier, list);
        _eq(committee.pointsOf(2, r[1].verifier), 10);
    }

    function test_committedNotRevealed_isSlashedWithoutAList() public {
        Report[] memory r = _reports(2, list, _verdict(10, 0, false));
        _at(3, 0);
        _commit(2, r[0]);
        _at(3, 2);
        committee.judgeVerifier(2, r[0].verifier, new address[](0));
        _eq(_active(r[0].verifier), SEAT_STAKE - SEAT_STAKE * 50 / 10_000);
        vm.expectRevert(abi.encodeWithSelector(IVerifierCommitteeErrors.AlreadyJudged.selector, 2, r[0].verifier));
        committee.judgeVerifier(2, r[0].verifier, new address[](0));
    }

    function test_drawnNotCommitted_isSlashed() public {
        Report[] memory r = _reports(2, list, _verdict(10, 0, false));
        address idle = r[2].verifier;
        assembly ("memory-safe") {
            mstore(r, 2)
        }
        _submit(2, r);
        vm.expectRevert(abi.encodeWithSelector(IVerifierCommitteeErrors.NotFinalized.selector, 2, nodes[0]));
        committee.judgeVerifier(2, idle, list);
        committee.finalize(2, list);
        vm.expectRevert(abi.encodeWithSelector(IVerifierCommitteeErrors.NothingToJudge.selector, 2, idle));
        committee.judgeVerifier(2, idle, new address[](0));
        committee.judgeVerifier(2, idle, list);
        _eq(_active(idle), SEAT_STAKE - SEAT_STAKE * 50 / 10_000);
        vm.expectRevert(abi.encodeWithSelector(IVerifierCommitteeErrors.AlreadyJudged.selector, 2, idle));
        committee.judgeVerifier(2, idle, list);
    }

    function test_emptyReveal_doesNotHideAMissedDuty() public {
        Report[] memory r = _reports(2, list, _verdict(10, 0, false));
        r[1] = _plain(r[1].verifier, new address[](0), new uint16[](0));
        _submit(2, r);
        committee.finalize(2, list);
        // Its own empty list earns nothing, and the accusation still holds.
        committee.judgeVerifier(2, r[1].verifier, new address[](0));
        _eq(committee.pointsOf(2, r[1].verifier), 0);
        committee.judgeVerifier(2, r[1].verifier, list);
        _eq(_active(r[1].verifier), SEAT_STAKE - SEAT_STAKE * 50 / 10_000);
    }

    function test_RevertWhen_accusedOfADutyItDidOrNeverHad() public {
        Report[] memory r = _reports(2, list, _verdict(10, 0, false));
        _submit(2, r);
        committee.finalize(2, nodes);
        committee.judgeVerifier(2, r[0].verifier, list);
        vm.expectRevert(abi.encodeWithSelector(IVerifierCommitteeErrors.AlreadyJudged.selector, 2, r[0].verifier));
        committee.judgeVerifier(2, r[0].verifier, list);
        address outsider;
        for (uint256 i; i < 5; ++i) {
            if (!seats.isDrawn(2, nodes[0], verifiers[i])) outsider = verifiers[i];
        }
        vm.expectRevert(abi.encodeWithSelector(IVerifierCommitteeErrors.NotDrawn.selector, 2, nodes[0], outsider));
        committee.judgeVerifier(2, outsider, list);
        // No quorum on the other node: nothing shows that there was work.
        address drawn;
        for (uint256 i; i < 5; ++i) {
            if (seats.isDrawn(2, nodes[1], verifiers[i])) drawn = verifiers[i];
        }
        vm.expectRevert(abi.encodeWithSelector(IVerifierCommitteeErrors.NothingToJudge.selector, 2, drawn));
        committee.judgeVerifier(2, drawn, _one(nodes[1]));
        vm.expectRevert(abi.encodeWithSelector(ISeatRegistryErrors.NotSeated.selector, 2, client));
        committee.judgeVerifier(2, client, list);
    }

    function test_griefing_aStrangerCannotVoidPoints() public {
        Report[] memory r = _reports(2, list, _verdict(10, 0, false));
        _submit(2, r);
        committee.finalize(2, list);
        vm.expectRevert(abi.encodeWithSelector(IVerifierCommitteeErrors.NothingToJudge.selector, 2, r[0].verifier));
        vm.prank(address(0xBAD));
        committee.judgeVerifier(2, r[0].verifier, new address[](0));
        committee.judgeVerifier(2, r[0].verifier, list);
        _eq(committee.pointsOf(2, r[0].verifier), 10);
    }

    function test_RevertWhen_judgedBeforeTheVerdictIsFinal() public {
        Report[] memory r = _reports(2, list, _verdict(10, 0, false));
        _submit(2, r);
        vm.expectRevert(abi.encodeWithSelector(IVerifierCommitteeErrors.NotFinalized.selector, 2, nodes[0]));
        committee.judgeVerifier(2, r[0].verifier, list);
    }

    function test_noQuorum_neitherPaysNorSlashes() public {
        Report[] memory r = _reports(2, list, _verdict(0, 10, true));
        assembly ("memory-safe") {
            mstore(r, 1)
        }
        _submit(2, r);
        committee.finalize(2, list);
        committee.judgeVerifier(2, r[0].verifier, list);
        _eq(committee.pointsOf(2, r[0].verifier), 0);
        _eq(_active(r[0].verifier), SEAT_STAKE);
    }

    function test_leaving_doesNotEndTheDutiesOfTheEpoch() public {
        // Seats of epoch 2 left in epoch 3 still answer for epoch 2.
        Report[] memory r = _reports(2, list, _verdict(10, 0, false));
        vm.prank(r[0].verifier);
        seats.leaveSeat();
        _submit(2, r);
        committee.finalize(2, list);
        committee.judgeVerifier(2, r[0].verifier, list);
        _eq(committee.pointsOf(2, r[0].verifier), 10);
    }

    function test_tally_reportsSeverity() public {
        _submit(2, _reports(2, list, _verdict(3, 7, true)));
        committee.finalize(2, list);
        IVerifierCommitteeTypes.Tally memory t = committee.tallyOf(2, nodes[0]);
        _true(t.severe && t.quorum && t.finalized, "flags");
        _eq(t.passed, 3);
        _eq(t.failed, 7);
        _eq(t.reveals, 3);
    }
}
