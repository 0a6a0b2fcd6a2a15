// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {ICanaryRegistryTypes} from "../../contracts/interfaces/ICanaryRegistry.sol";
import {ISeatRegistryTypes} from "../../contracts/interfaces/ISeatRegistry.sol";
import {IVerifierCommitteeTypes} from "../../contracts/interfaces/IVerifierCommittee.sol";
import {TallyWord} from "../../contracts/libraries/TallyWord.sol";
import {TapWord} from "../../contracts/libraries/TapWord.sol";
import {CanaryFixture} from "./CanaryFixture.sol";
import {TestBase} from "./Vm.sol";

/// @notice What opened canaries do to the node and to its verifiers. Two canaries are planted; ten units passed beside.
contract CanaryJudgementTest is CanaryFixture {
    event CanaryForgiven(address indexed node, uint64 indexed epoch, uint256 verdicts);
    event VerifierJudged(
        uint64 indexed epoch, address indexed verifier, uint8 outcome, uint256 slashed, uint256 points
    );

    uint16 internal constant FOUND = uint16(1 << 15 | 4 << 8 | 10);
    uint16 internal constant PASSED = 14;
    uint256 internal constant DEVIATION = SEAT_STAKE * 200 / 10_000;

    address[] internal list;
    bytes32 internal exact;
    bytes32 internal beside;

    function setUp() public virtual override {
        super.setUp();
        _plant(2, 2);
        _fixSeed(2);
        list = _one(nodes[0]);
        exact = _fault(2, _planted(2));
        beside = keccak256("the canaries and a real cheat");
    }

    /// @dev Verdicts with their digests by member; opens between reveals and tally when `opened`, then finalizes.
    function _play(uint16[3] memory verdicts, bytes32[3] memory digests, bool opened)
        internal
        returns (Report[] memory r)
    {
        r = _reports(2, list, 0);
        for (uint256 i; i < 3; ++i) {
            r[i].verdicts[0] = verdicts[i];
            r[i].taps[0] = digests[i];
        }
        _submitAndOpen(2, r, opened ? 2 : 0);
        committee.finalize(2, list);
        for (uint256 i; i < 3; ++i) {
            committee.judgeVerifier(2, r[i].verifier, list);
        }
    }

    function _expectEarned(address v, uint256 units) internal view {
        _eq(vault.stakeOf(v).active, SEAT_STAKE);
        _eq(committee.pointsOf(2, v), units);
    }

    function _expectSlashed(address v) internal view {
        _eq(vault.stakeOf(v).active, SEAT_STAKE - DEVIATION);
        _eq(committee.pointsOf(2, v), 0);
    }

    function _expectNode(bool punished, bool excluded) internal view {
        _eq(vault.stakeOf(nodes[0]).active, punished ? NODE_STAKE * 8 / 10 : NODE_STAKE);
        _eq(vault.jailedUntil(nodes[0]) != 0 ? 1 : 0, punished ? 1 : 0);
        _eq(committee.standingOf(nodes[0]) == 0 ? 1 : 0, excluded ? 1 : 0);
    }

    function test_exactlyTheCanaries_areForgivenAndTheRestCounts() public {
        Report[] memory r = _play([FOUND, FOUND, FOUND], [exact, exact, exact], true);
        _expectNode(false, false);
        IVerifierCommitteeTypes.Tally memory t = committee.tallyOf(2, nodes[0]);
        _true(t.quorum && !t.severe && t.forgiven == 3, "forgiven");
        _eq(t.passed, 10);
        _eq(t.failed, 0);
        (uint64 alpha, uint64 beta,, uint16 offences,) = committee.trustState(nodes[0]);
        _eq(alpha, 1e6);
        _eq(beta, 0);
        _eq(offences, 0);
        // The audits of the canaries were work like any other.
        for (uint256 i; i < 3; ++i) {
            _expectEarned(r[i].verifier, 14);
        }
    }

    function test_forgiving_isTold() public {
        Report[] memory r = _tappedAll(_reports(2, list, FOUND), exact);
        _submitAndOpen(2, r, 2);
        vm.expectEmit(true, true, true, true, address(committee));
        emit CanaryForgiven(nodes[0], 2, 3);
        committee.finalize(2, list);
    }

    function test_withoutAnOpening_theNodeIsPunished() public {
        _play([FOUND, FOUND, FOUND], [exact, exact, exact], false);
        _expectNode(true, true);
    }

    function test_aRealCheatBesideTheCanary_isPunishedInFull() public {
        uint16 more = uint16(1 << 15 | 6 << 8 | 8);
        Report[] memory r = _play([more, more, more], [beside, beside, beside], true);
        _expectNode(true, true);
        _eq(committee.tallyOf(2, nodes[0]).failed, 6);
        _eq(committee.tallyOf(2, nodes[0]).forgiven, 0);
        for (uint256 i; i < 3; ++i) {
            _expectEarned(r[i].verifier, 14);
        }
    }

    function test_oneCanaryKeptBack_forgivesNothing() public {
        Report[] memory r = _tappedAll(_reports(2, list, FOUND), exact);
        _submitAndOpen(2, r, 1);
        committee.finalize(2, list);
        _expectNode(true, true);
    }

    function test_aLesserFailure_isNotForgiven() public {
        // Work at the edge of a tolerance: two verifiers fail it, one passes it. Were it forgiven, a node could have
        // verifiers contradict each other for nothing.
        uint16 gray = _verdict(10, 4, false);
        _play([gray, gray, PASSED], [exact, exact, bytes32(0)], true);
        _expectNode(false, true);
        _eq(committee.tallyOf(2, nodes[0]).failed, 4);
        _eq(committee.tallyOf(2, nodes[0]).forgiven, 0);
    }

    function test_whoPassesTheCanary_losesThoughTheNodePasses() public {
        Report[] memory r = _play([FOUND, PASSED, FOUND], [exact, bytes32(0), exact], true);
        _expectNode(false, false);
        _expectEarned(r[0].verifier, 14);
        _expectSlashed(r[1].verifier);
        _expectEarned(r[2].verifier, 14);
        _eq(committee.totalPoints(2), 28);
    }

    function test_whoFoundItLosesNothing_thoughTheMajorityPasses() public {
        Report[] memory r = _play([FOUND, PASSED, PASSED], [exact, bytes32(0), bytes32(0)], true);
        _expectNode(false, false);
        // A lazy majority is not punished; its medians are its own.
        _expectEarned(r[0].verifier, 14);
        _expectEarned(r[1].verifier, 14);
        _expectEarned(r[2].verifier, 14);
    }

    function test_whoFailsSomethingElse_whileTheMajorityPasses_loses() public {
        Report[] memory r = _play([FOUND, PASSED, PASSED], [beside, bytes32(0), bytes32(0)], true);
        _expectSlashed(r[0].verifier);
        _expectNode(false, false);
    }

    function test_aLazyMajorityWithoutAnOpening_hurtsWhoComputed() public {
        Report[] memory r = _play([FOUND, PASSED, PASSED], [exact, bytes32(0), bytes32(0)], false);
        _expectSlashed(r[0].verifier);
    }

    function test_aFalseCanary_hurtsNobody() public {
        // Opened, but computed right: everybody found it so.
        bytes32 tap = keccak256("taps");
        Report[] memory r = _play([PASSED, PASSED, PASSED], [tap, tap, tap], true);
        _expectNode(false, false);
        _eq(committee.tallyOf(2, nodes[0]).passed, 14);
        _eq(committee.tallyOf(2, nodes[0]).forgiven, 0);
        for (uint256 i; i < 3; ++i) {
            _expectEarned(r[i].verifier, 14);
        }
    }

    function test_theOpeningOfOneNode_forgivesNoOther() public {
        Report[] memory r = _tappedAll(_reports(2, nodes, FOUND), exact);
        _submitAndOpen(2, r, 2);
        committee.finalize(2, nodes);
        _expectNode(false, false);
        _eq(vault.stakeOf(nodes[1]).active, NODE_STAKE * 8 / 10);
    }

    function test_gas_finalizeAndJudge_withCanaries() public {
        Report[] memory r = _tappedAll(_reports(2, list, FOUND), exact);
        _submitAndOpen(2, r, 2);
        committee.finalize(2, list);
        _spent("finalize a node with canaries", 113_000);
        committee.judgeVerifier(2, r[0].verifier, list);
        _spent("judge a verifier of canaries", 126_000);
    }

    /// @notice Whatever the three say: the node is punished by what is left of the verdicts, the verifiers are judged by
    /// the verdicts themselves, and who found exactly the canaries never loses.
    /// forge-config: default.fuzz.runs = 128
    function testFuzz_forgivingAndJudging(uint8[3] memory kinds, bool opened) public {
        uint16[3] memory verdicts;
        bytes32[3] memory digests;
        uint256[3] memory counts;
        for (uint256 i; i < 3; ++i) {
            uint256 kind = kinds[i] % 5;
            // 0 passes, 1 found exactly the canaries, 2 more than them, 3 them as a lesser failure, 4 claims nothing.
            verdicts[i] = kind == 0 ? PASSED : kind == 3 ? _verdict(10, 4, false) : FOUND;
            digests[i] = kind == 1 || kind == 3 ? exact : kind == 2 ? beside : bytes32(0);
            // Failing raw, failing for good, severe for good.
            if (kind != 0) ++counts[0];
            if (kind != 0 && !(opened && kind == 1)) ++counts[1];
            if (kind == 2 || kind == 4 || (kind == 1 && !opened)) ++counts[2];
        }
        Report[] memory r = _play(verdicts, digests, opened);
        // Of three, the lower median is the second: two failures fail.
        _expectNode(counts[2] >= 2 && counts[1] >= 2, counts[1] >= 2);
        for (uint256 i; i < 3; ++i) {
            bool pass = kinds[i] % 5 == 0;
            bool protected = opened && digests[i] == exact;
            if (pass != (counts[0] < 2) && !protected) _expectSlashed(r[i].verifier);
            else _expectEarned(r[i].verifier, 14);
        }
    }
}

/// @notice The greatest committee: fingerprints in two words.
contract CanaryCommitteeOf15Test is CanaryFixture {
    function _terms() internal pure override returns (ISeatRegistryTypes.Terms memory) {
        return ISeatRegistryTypes.Terms({committeeSize: 15, seatStake: SEAT_STAKE});
    }

    function test_fifteenMembers_whoPassLoseAndTheNodeDoesNot() public {
        _seatFifteen();
        _at(3, 0);
        _plant(3, 2);
        _fixSeed(3);
        address[] memory list = _one(nodes[0]);
        Report[] memory r = _reports(3, list, _verdict(10, 4, true));
        _eq(r.length, 15);
        for (uint256 i; i < 15; ++i) {
            _tapped(r[i], _fault(3, _planted(2)));
            // Five of fifteen pass unseen.
            if (i % 3 == 2) (r[i].verdicts[0], r[i].taps[0]) = (14, bytes32(0));
        }
        _submitAndOpen(3, r, 2);
        committee.finalize(3, list);
        _eq(committee.tallyOf(3, nodes[0]).forgiven, 10);
        _eq(vault.stakeOf(nodes[0]).active, NODE_STAKE);
        for (uint256 i; i < 15; ++i) {
            committee.judgeVerifier(3, r[i].verifier, list);
            _eq(committee.pointsOf(3, r[i].verifier), i % 3 == 2 ? 0 : 14);
        }
    }
}

/// @notice Epoch after epoch: canaries, real cheats, both or neither, and one of five verifiers lies in any way.
contract CanaryEpochsTest is CanaryFixture {
    uint256 internal constant EPOCHS = 5;

    function _active(address v) internal view returns (uint256) {
        return vault.stakeOf(v).active;
    }

    /// @dev What a verifier that computed says.
    function _truth(uint64 e, bool planted, bool cheats) internal view returns (uint16, bytes32) {
        if (cheats) return (_verdict(6, 8, true), keccak256(abi.encode("cheat", e, planted)));
        if (planted) return (_verdict(10, 4, true), _fault(e, _planted(1)));
        return (14, keccak256(abi.encode("taps", e)));
    }

    /// forge-config: default.fuzz.runs = 32
    function testFuzz_honestNeverLose_cheatsNeverHideBehindCanaries(bytes32 plan) public {
        address[] memory list = _one(nodes[0]);
        address liar = verifiers[4];
        for (uint64 e = 2; e < 2 + EPOCHS; ++e) {
            uint8 step = uint8(plan[e]);
            (bool planted, bool cheats) = (step & 1 != 0, step & 2 != 0 && step & 4 != 0);
            _at(e, 0);
            _plant(e, planted ? 1 : 0);
            _fixSeed(e);
            (uint16 verdict, bytes32 digest) = _truth(e, planted, cheats);
            Report[] memory r = _tappedAll(_reports(e, list, verdict), digest);
            // One pass unseen, one accusation, one digest made up: of a passed or of a failed node.
            uint256 lie = (step >> 3) % 4;
            for (uint256 i; i < r.length; ++i) {
                if (r[i].verifier != liar || lie == 0) continue;
                r[i].verdicts[0] = lie == 1 ? 14 : lie == 2 ? _verdict(0, 14, true) : verdict;
                r[i].taps[0] = lie == 3 ? keccak256("made up") : bytes32(0);
            }
            uint256 stake = _active(nodes[0]);
            _play(e, r, planted);
            _eq(_active(nodes[0]) < stake ? 1 : 0, cheats && stake != 0 ? 1 : 0);
            _eq(committee.tallyOf(e, nodes[0]).failed, cheats ? 8 : 0);
            for (uint256 i; i < r.length; ++i) {
                bool honest = r[i].verifier != liar || lie == 0;
                if (!honest) continue;
                _eq(committee.pointsOf(e, r[i].verifier), 14);
                if (r[i].verifier != liar) _eq(_active(r[i].verifier), SEAT_STAKE);
            }
            // Who passed unseen where there was something to find, or accused where there was nothing, got nothing.
            for (uint256 i; i < r.length; ++i) {
                if (r[i].verifier != liar) continue;
                bool wrong = lie == 1 ? planted || cheats : lie == 2 ? !planted && !cheats : false;
                if (wrong) _eq(committee.pointsOf(e, liar), 0);
            }
        }
    }

    function _play(uint64 e, Report[] memory r, bool planted) internal {
        _submitAndOpen(e, r, planted ? 1 : 0);
        committee.finalize(e, _one(nodes[0]));
        for (uint256 i; i < r.length; ++i) {
            committee.judgeVerifier(e, r[i].verifier, r[i].nodes);
        }
    }
}

contract CanaryWordTest is TestBase {
    /// @notice The tally without the forgiven verdicts is the tally in which they were passes to begin with.
    /// forge-config: default.fuzz.runs = 512
    function testFuzz_forgive_isATallyWithPasses(uint16[15] memory verdicts, uint8[15] memory prints, uint16 revealed)
        public
        pure
    {
        uint256[2] memory lanes;
        uint256 word;
        uint256 expected;
        uint256 count;
        for (uint256 i; i < 15; ++i) {
            if ((revealed >> i) & 1 == 0) continue;
            uint16 v = verdicts[i];
            if (TallyWord.isSevere(v) && TallyWord.failedUnits(v) == 0) v |= 1 << 8;
            uint256 print = prints[i] % 3;
            lanes[i / 8] |= print << (32 * (i % 8));
            word = TallyWord.add(word, i, v);
            bool forgiven = print == 1 && TallyWord.isSevere(v);
            if (forgiven) ++count;
            expected = TallyWord.add(expected, i, forgiven ? TallyWord.passedUnits(v) : v);
        }
        (uint256 cleared, uint256 n) = TapWord.forgive(lanes[0], lanes[1], word, 15, 1);
        _eq(cleared, expected);
        _eq(n, count);
        _eq(TallyWord.reveals(cleared), TallyWord.reveals(word));
    }
}
