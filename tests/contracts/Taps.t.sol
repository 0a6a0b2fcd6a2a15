// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {IVerifierCommitteeErrors, IVerifierCommitteeTypes} from "../../contracts/interfaces/IVerifierCommittee.sol";
import {ISeatRegistryTypes} from "../../contracts/interfaces/ISeatRegistry.sol";
import {TapWord} from "../../contracts/libraries/TapWord.sol";
import {Fixture} from "./Fixture.sol";
import {TestBase} from "./Vm.sol";

/// @notice What tap digests do to verifiers: who passes a node without having computed loses, nobody else does.
contract TapJudgementTest is Fixture {
    bytes32 internal constant TRUE_TAP = keccak256("computed");
    bytes32 internal constant OTHER_TAP = keccak256("made up");
    address[] internal list;

    event VerifierJudged(
        uint64 indexed epoch, address indexed verifier, uint8 outcome, uint256 slashed, uint256 points
    );

    function setUp() public override {
        super.setUp();
        _at(2, 0);
        _fixSeed(2);
        list = _one(nodes[0]);
    }

    function _active(address v) internal view returns (uint256) {
        return vault.stakeOf(v).active;
    }

    /// @dev Three reports about one node: verdicts and digests by member, revealed and final.
    function _play(uint16[3] memory verdicts, bytes32[3] memory taps) internal returns (Report[] memory r) {
        r = _reports(2, list, 0);
        for (uint256 i; i < 3; ++i) {
            r[i].verdicts[0] = verdicts[i];
            r[i].taps[0] = taps[i];
        }
        _submit(2, r);
        committee.finalize(2, list);
        for (uint256 i; i < 3; ++i) {
            committee.judgeVerifier(2, r[i].verifier, list);
        }
    }

    function _expectEarned(address v) internal view {
        _eq(_active(v), SEAT_STAKE);
        _eq(committee.pointsOf(2, v), 10);
    }

    function _expectSlashed(address v) internal view {
        _eq(_active(v), SEAT_STAKE - SEAT_STAKE * 200 / 10_000);
        _eq(committee.pointsOf(2, v), 0);
    }

    function _expectNode(bool punished, bool excluded) internal view {
        _eq(_active(nodes[0]), punished ? NODE_STAKE * 8 / 10 : NODE_STAKE);
        _eq(vault.jailedUntil(nodes[0]) != 0 ? 1 : 0, punished ? 1 : 0);
        _eq(committee.standingOf(nodes[0]) == 0 ? 1 : 0, excluded ? 1 : 0);
    }

    function test_sameDigest_everyoneEarns() public {
        uint16 pass = _verdict(10, 0, false);
        Report[] memory r = _play([pass, pass, pass], [TRUE_TAP, TRUE_TAP, TRUE_TAP]);
        for (uint256 i; i < 3; ++i) {
            _expectEarned(r[i].verifier);
        }
        _eq(committee.tallyOf(2, nodes[0]).tap, uint32(uint256(TRUE_TAP)));
    }

    function test_lazyPass_withAMadeUpDigestLosesPointsAndStake() public {
        uint16 pass = _verdict(10, 0, false);
        Report[] memory r = _play([pass, pass, pass], [TRUE_TAP, OTHER_TAP, TRUE_TAP]);
        _expectEarned(r[0].verifier);
        _expectSlashed(r[1].verifier);
        _expectEarned(r[2].verifier);
        _eq(committee.totalPoints(2), 20);
    }

    function test_lazyPass_withoutADigestLosesToo() public {
        uint16 pass = _verdict(10, 0, false);
        Report[] memory r = _play([pass, pass, pass], [TRUE_TAP, TRUE_TAP, bytes32(0)]);
        _expectEarned(r[0].verifier);
        _expectSlashed(r[2].verifier);
    }

    function test_judgement_namesTheTap() public {
        Report[] memory r = _reports(2, list, _verdict(10, 0, false));
        (r[0].taps[0], r[1].taps[0], r[2].taps[0]) = (TRUE_TAP, TRUE_TAP, OTHER_TAP);
        _submit(2, r);
        committee.finalize(2, list);
        vm.expectEmit(true, true, true, true, address(committee));
        emit VerifierJudged(2, r[2].verifier, 3, SEAT_STAKE * 200 / 10_000, 0);
        committee.judgeVerifier(2, r[2].verifier, list);
    }

    function test_noQuorumOfDigests_punishesNobody() public {
        uint16 pass = _verdict(10, 0, false);
        Report[] memory r = _play([pass, pass, pass], [TRUE_TAP, OTHER_TAP, bytes32(0)]);
        for (uint256 i; i < 3; ++i) {
            _expectEarned(r[i].verifier);
        }
        _eq(committee.tallyOf(2, nodes[0]).tap, 0);
    }

    function test_zeroIsNeverFinal_soThatALazyMajorityHurtsNoHonestOne() public {
        uint16 pass = _verdict(10, 0, false);
        Report[] memory r = _play([pass, pass, pass], [bytes32(0), bytes32(0), TRUE_TAP]);
        for (uint256 i; i < 3; ++i) {
            _expectEarned(r[i].verifier);
        }
    }

    function test_digestBesideAFailureCountsNeitherForNorAgainst() public {
        uint16 pass = _verdict(10, 0, false);
        // The node showed its bytes to two verifiers and withheld them from the third, who attests no tap.
        Report[] memory r = _play([pass, pass, _verdict(0, 10, false)], [TRUE_TAP, TRUE_TAP, bytes32(0)]);
        _expectEarned(r[0].verifier);
        _expectEarned(r[1].verifier);
        // By the verdict rule, as without taps; once.
        _expectSlashed(r[2].verifier);
    }

    function test_digestsOfFailuresMakeNoQuorum() public {
        uint16 fail = _verdict(0, 10, false);
        Report[] memory r = _play([fail, fail, fail], [TRUE_TAP, TRUE_TAP, OTHER_TAP]);
        for (uint256 i; i < 3; ++i) {
            _expectEarned(r[i].verifier);
        }
        _eq(committee.tallyOf(2, nodes[0]).tap, 0);
    }

    function test_digestBesideAFailure_isIgnored() public {
        uint16 pass = _verdict(10, 0, false);
        // With the digest of the second member there would be two of three, which is the quorum.
        Report[] memory r = _play([pass, _verdict(9, 1, true), pass], [TRUE_TAP, TRUE_TAP, OTHER_TAP]);
        _eq(committee.tallyOf(2, nodes[0]).tap, 0);
        _expectEarned(r[0].verifier);
        _expectSlashed(r[1].verifier);
        _expectEarned(r[2].verifier);
    }

    function test_digestBesideAFailure_excusesNobody() public {
        uint16 severe = _verdict(6, 4, true);
        Report[] memory r = _play([severe, severe, severe], [TRUE_TAP, TRUE_TAP, TRUE_TAP]);
        _expectNode(true, true);
        IVerifierCommitteeTypes.Tally memory t = committee.tallyOf(2, nodes[0]);
        _true(t.quorum && t.severe, "severe");
        _eq(t.passed, 6);
        _eq(t.failed, 4);
        _eq(t.tap, 0);
        for (uint256 i; i < 3; ++i) {
            _expectEarned(r[i].verifier);
        }
    }

    function test_lesserFailureOfTwo_costsTheNodeItsStandingAndTheThirdMemberItsPoints() public {
        // Work at the edge of a tolerance: two verifiers fail it, one passes it.
        uint16 gray = _verdict(6, 4, false);
        Report[] memory r = _play([gray, gray, _verdict(10, 0, false)], [bytes32(0), bytes32(0), TRUE_TAP]);
        _expectNode(false, true);
        _eq(committee.tallyOf(2, nodes[0]).failed, 4);
        _expectEarned(r[0].verifier);
        _expectEarned(r[1].verifier);
        _expectSlashed(r[2].verifier);
        _eq(committee.totalPoints(2), 20);
    }

    function test_failureOfOneNode_leavesTheOtherNodeAlone() public {
        Report[] memory r = _reports(2, nodes, 0);
        for (uint256 i; i < r.length; ++i) {
            for (uint256 k; k < r[i].nodes.length; ++k) {
                bool first = r[i].nodes[k] == nodes[0];
                (r[i].verdicts[k], r[i].taps[k]) = (first ? _verdict(6, 4, true) : _verdict(10, 0, false), TRUE_TAP);
            }
        }
        _submit(2, r);
        committee.finalize(2, nodes);
        _expectNode(true, true);
        _eq(_active(nodes[1]), NODE_STAKE);
        _eq(committee.tallyOf(2, nodes[0]).tap, 0);
        _eq(committee.tallyOf(2, nodes[1]).tap, uint32(uint256(TRUE_TAP)));
    }

    function test_missingMember_leavesTheQuorumTwoThirdsOfTheDrawn() public {
        Report[] memory r = _reports(2, list, _verdict(10, 0, false));
        (r[0].taps[0], r[1].taps[0]) = (TRUE_TAP, OTHER_TAP);
        assembly ("memory-safe") {
            mstore(r, 2)
        }
        _submit(2, r);
        committee.finalize(2, list);
        committee.judgeVerifier(2, r[0].verifier, list);
        committee.judgeVerifier(2, r[1].verifier, list);
        _expectEarned(r[0].verifier);
        _expectEarned(r[1].verifier);
    }

    function test_oneBadTapCostsTheWholeEpochOnce() public {
        // A verifier drawn for both nodes that made up the digest of one.
        Report[] memory r = _reports(2, nodes, _verdict(10, 0, false));
        uint256 both = r.length;
        for (uint256 i; i < r.length; ++i) {
            _tapped(r[i], TRUE_TAP);
            if (r[i].nodes.length == 2) both = i;
        }
        _true(both < r.length, "two draws of three out of five overlap");
        r[both].taps[1] = OTHER_TAP;
        _submit(2, r);
        committee.finalize(2, nodes);
        committee.judgeVerifier(2, r[both].verifier, r[both].nodes);
        _expectSlashed(r[both].verifier);
    }

    function test_RevertWhen_anotherDigestIsRevealedThanCommitted() public {
        Report memory r = _tapped(_reports(2, list, _verdict(10, 0, false))[0], TRUE_TAP);
        _commit(2, r);
        bytes32 committed = _commitment(2, r);
        _at(3, 1);
        _tapped(r, OTHER_TAP);
        bytes32 shown = _commitment(2, r);
        vm.expectRevert(abi.encodeWithSelector(IVerifierCommitteeErrors.CommitmentMismatch.selector, committed, shown));
        _reveal(2, r);
    }

    /// @notice Whatever the others do, who reveals the verdict and the digest of the quorum is never slashed, and only
    /// members who passed the node can be told off for a digest.
    /// forge-config: default.fuzz.runs = 96
    function testFuzz_honestNeverLoses(uint8[3] memory kinds, uint8 honest) public {
        uint16[3] memory verdicts;
        bytes32[3] memory taps;
        honest %= 3;
        for (uint256 i; i < 3; ++i) {
            uint256 kind = i == honest ? 0 : kinds[i] % 4;
            verdicts[i] = kind == 3 ? _verdict(0, 10, true) : _verdict(10, 0, false);
            taps[i] = kind == 1 ? OTHER_TAP : kind == 2 ? bytes32(0) : TRUE_TAP;
        }
        Report[] memory r = _play(verdicts, taps);
        IVerifierCommitteeTypes.Tally memory t = committee.tallyOf(2, nodes[0]);
        bool outvoted = t.failed != 0 || t.tap == uint32(uint256(OTHER_TAP));
        if (!outvoted) _expectEarned(r[honest].verifier);
        for (uint256 i; i < 3; ++i) {
            bool pass = verdicts[i] < 256;
            bool guilty = pass != (t.failed == 0) || (pass && t.tap != 0 && t.tap != uint32(uint256(taps[i])));
            _eq(_active(r[i].verifier), guilty ? SEAT_STAKE - SEAT_STAKE * 200 / 10_000 : SEAT_STAKE);
        }
    }

    /// @notice Whatever the three attest beside failures, the medians of the verdicts punish the node, and each
    /// verifier is judged by its verdict against them.
    /// forge-config: default.fuzz.runs = 128
    function testFuzz_digestsBesideFailuresChangeNothing(uint8[3] memory kinds) public {
        uint16[3] memory verdicts;
        bytes32[3] memory taps;
        uint256 failing;
        uint256 severe;
        for (uint256 i; i < 3; ++i) {
            // 0 passes; 1, 2 and 3 fail severely with the digest of the pass, another one and none; 4 fails less.
            uint256 kind = kinds[i] % 5;
            verdicts[i] = kind == 0 ? _verdict(10, 0, false) : _verdict(6, 4, kind != 4);
            taps[i] = kind == 2 ? OTHER_TAP : kind == 3 ? bytes32(0) : TRUE_TAP;
            if (kind != 0) ++failing;
            if (kind != 0 && kind != 4) ++severe;
        }
        Report[] memory r = _play(verdicts, taps);
        // Of three, the lower median is the second: two failures fail.
        _expectNode(severe >= 2, failing >= 2);
        _eq(committee.tallyOf(2, nodes[0]).tap, failing < 2 ? uint32(uint256(TRUE_TAP)) : 0);
        for (uint256 i; i < 3; ++i) {
            if ((kinds[i] % 5 == 0) == (failing < 2)) _expectEarned(r[i].verifier);
            else _expectSlashed(r[i].verifier);
        }
    }
}

/// @notice Epoch after epoch one of five verifiers lies in any way, so that every committee of three has two honest
/// ones.
contract TapEpochsTest is Fixture {
    uint256 internal constant EPOCHS = 6;

    function _truth(uint64 e, address node, bool bad) internal pure returns (uint16, bytes32) {
        return bad ? (_verdict(0, 10, true), bytes32(0)) : (_verdict(10, 0, false), keccak256(abi.encode(e, node)));
    }

    /// @dev What `verifier` says about the nodes it was drawn for. Lie 0 is none, 1 a made-up digest, 2 no digest,
    /// 3 a failure of everything, 4 a pass of everything with a made-up digest.
    function _says(uint64 e, address verifier, bool[2] memory bad, uint256 lie)
        internal
        view
        returns (Report memory r, bool wrong)
    {
        r = _report(e, verifier, nodes, 0);
        for (uint256 i; i < r.nodes.length; ++i) {
            bool isBad = bad[r.nodes[i] == nodes[0] ? 0 : 1];
            (uint16 verdict, bytes32 tap) = _truth(e, r.nodes[i], isBad);
            (r.verdicts[i], r.taps[i]) = (verdict, tap);
            if (lie == 0) continue;
            if (lie == 3) r.verdicts[i] = _verdict(0, 10, true);
            if (lie == 4) r.verdicts[i] = _verdict(10, 0, false);
            r.taps[i] = lie == 2 || lie == 3 ? bytes32(0) : keccak256(abi.encode("made up", e));
            // A false digest beside the right failure claims nothing.
            wrong = wrong || r.verdicts[i] != verdict || !isBad;
        }
    }

    function _active(address v) internal view returns (uint256) {
        return vault.stakeOf(v).active;
    }

    /// forge-config: default.fuzz.runs = 40
    function testFuzz_honestEarnAndLiarsLose(bytes32 plan) public {
        address liar = verifiers[4];
        for (uint64 e = 2; e < 2 + EPOCHS; ++e) {
            uint8 step = uint8(plan[e]);
            bool[2] memory bad = [step & 1 != 0, step & 2 != 0];
            _fixSeed(e);
            Report[] memory r = new Report[](5);
            bool caught;
            for (uint256 v; v < 5; ++v) {
                (r[v], caught) = _says(e, verifiers[v], bad, v == 4 ? (step >> 2) % 5 : 0);
            }
            uint256 before = _active(liar);
            uint256[2] memory stakes = [_active(nodes[0]), _active(nodes[1])];
            _submit(e, r);
            committee.finalize(e, nodes);
            uint256 sum;
            for (uint256 v; v < 5; ++v) {
                committee.judgeVerifier(e, verifiers[v], r[v].nodes);
                uint256 points = committee.pointsOf(e, verifiers[v]);
                sum += points;
                _eq(points, v == 4 && caught ? 0 : 10 * r[v].nodes.length);
                if (v < 4) _eq(_active(verifiers[v]), SEAT_STAKE);
            }
            _eq(committee.totalPoints(e), sum);
            for (uint256 i; i < 2; ++i) {
                // A severe failure costs stake as long as there is some; nothing else does.
                _eq(_active(nodes[i]) < stakes[i] ? 1 : 0, bad[i] && stakes[i] != 0 ? 1 : 0);
                _eq(committee.tallyOf(e, nodes[i]).failed, bad[i] ? 10 : 0);
            }
            // Rounded against the offender.
            _eq(_active(liar), caught ? before - (before * 200 + 9_999) / 10_000 : before);
        }
    }
}

/// @notice A committee of the greatest size: the fingerprints fill two words.
contract TapCommitteeOf15Test is Fixture {
    function _terms() internal pure override returns (ISeatRegistryTypes.Terms memory) {
        return ISeatRegistryTypes.Terms({committeeSize: 15, seatStake: SEAT_STAKE});
    }

    function test_fifteenMembers_findTheOneThatMadeItUp() public {
        _seatFifteen();
        _at(2, 0);
        _fixSeed(2);
        address[] memory list = _one(nodes[0]);
        Report[] memory r = _reports(2, list, _verdict(10, 0, false));
        _eq(r.length, 15);
        for (uint256 i; i < 15; ++i) {
            // Five of fifteen disagree, each in its own way: ten are the quorum.
            _tapped(r[i], i % 3 == 2 ? bytes32(i) : keccak256("computed"));
        }
        _submit(2, r);
        committee.finalize(2, list);
        for (uint256 i; i < 15; ++i) {
            committee.judgeVerifier(2, r[i].verifier, list);
            _eq(committee.pointsOf(2, r[i].verifier), i % 3 == 2 ? 0 : 10);
        }
    }

    function test_fifteenMembers_failTheNodeAndFindWhoPassedUnseen() public {
        _seatFifteen();
        _at(2, 0);
        _fixSeed(2);
        address[] memory list = _one(nodes[0]);
        Report[] memory r = _reports(2, list, _verdict(6, 4, true));
        _eq(r.length, 15);
        for (uint256 i; i < 15; ++i) {
            // Five of fifteen pass unseen.
            if (i % 3 == 2) r[i].verdicts[0] = _verdict(10, 0, false);
        }
        _submit(2, r);
        committee.finalize(2, list);
        _eq(vault.stakeOf(nodes[0]).active, NODE_STAKE * 8 / 10);
        for (uint256 i; i < 15; ++i) {
            committee.judgeVerifier(2, r[i].verifier, list);
            _eq(committee.pointsOf(2, r[i].verifier), i % 3 == 2 ? 0 : 10);
        }
    }
}

contract TapWordTest is TestBase {
    using TapWord for TapWord.Words;

    TapWord.Words internal words;

    function testFuzz_lanes_keepWhatWasSet(uint32[15] memory prints, uint8 members) public {
        for (uint256 i; i < 15; ++i) {
            words.set(i, prints[i]);
        }
        members = uint8(1 + (members % 15));
        (uint256 low, uint256 high) = words.load(members);
        for (uint256 i; i < members; ++i) {
            _eq(TapWord.printOf(low, high, i), prints[i]);
        }
    }

    /// forge-config: default.fuzz.runs = 512
    function testFuzz_agreed_isACount(uint8[15] memory kinds, uint8 members) public pure {
        members = uint8(1 + (members % 15));
        uint256 needed = (2 * uint256(members) + 2) / 3;
        uint256[2] memory lanes;
        uint256[3] memory votes;
        for (uint256 i; i < members; ++i) {
            uint256 print = kinds[i] % 3;
            lanes[i / 8] |= print << (32 * (i % 8));
            ++votes[print];
        }
        uint32 expected;
        if (votes[1] >= needed) expected = 1;
        if (votes[2] >= needed) expected = 2;
        _eq(TapWord.agreed(lanes[0], lanes[1], members, needed), expected);
    }
}
