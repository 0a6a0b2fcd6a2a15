// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {IVerifierCommitteeTypes} from "../../contracts/interfaces/IVerifierCommittee.sol";
import {Draw} from "../../contracts/libraries/Draw.sol";
import {TallyWord} from "../../contracts/libraries/TallyWord.sol";
import {Trust} from "../../contracts/libraries/Trust.sol";
import {TestBase} from "./Vm.sol";

contract TrustTest is TestBase {
    using Trust for IVerifierCommitteeTypes.TrustState;

    function _reference(uint256 a, uint256 epochs) internal pure returns (uint256) {
        for (uint256 i; i < epochs; ++i) {
            a = a - a / 64;
        }
        return a;
    }

    function testFuzz_decay_equalsTheIntegerRule(uint64 a, uint64 b, uint32 from, uint32 elapsed) public pure {
        from = uint32(_bound(from, 1, 1e6));
        elapsed = uint32(_bound(elapsed, 0, 200));
        IVerifierCommitteeTypes.TrustState memory t = IVerifierCommitteeTypes.TrustState(a, b, from, 0, 0, 0);
        t.decay(uint256(from) + elapsed);
        uint256 steps = elapsed < 64 ? elapsed : 64;
        _eq(t.alpha, _reference(a, steps));
        _eq(t.beta, _reference(b, steps));
        _eq(t.epoch, from);
    }

    function testFuzz_decay_neverGoesBackInTime(uint64 a, uint64 b, uint32 from, uint32 before) public pure {
        before = uint32(_bound(before, 0, from));
        IVerifierCommitteeTypes.TrustState memory t = IVerifierCommitteeTypes.TrustState(a, b, from, 0, 0, 0);
        t.decay(before);
        _eq(t.alpha, a);
        _eq(t.beta, b);
    }

    function testFuzz_score_staysInPpm(uint64 a, uint64 b, uint64 prior) public pure {
        IVerifierCommitteeTypes.TrustState memory t = IVerifierCommitteeTypes.TrustState(a, b, 0, 0, 0, 0);
        prior = uint64(_bound(prior, 1, type(uint64).max));
        uint256 score = t.score(prior);
        _atMost(score, 1e6);
        _eq(score, (1e6 * uint256(a)) / (uint256(a) + uint256(b) + prior));
    }

    function testFuzz_count_neverOverflowsInPractice(uint8[64] memory passed, uint8[64] memory failed) public pure {
        IVerifierCommitteeTypes.TrustState memory t;
        for (uint32 e = 1; e <= 64; ++e) {
            t.decay(e);
            t.epoch = e;
            uint64 a = t.alpha;
            uint64 b = t.beta;
            uint16 f = failed[e - 1] % 128;
            t.count(passed[e - 1], f);
            if (f == 0) {
                _eq(t.alpha, a + uint256(passed[e - 1]) * 1e5);
                _eq(t.beta, b);
            } else {
                _eq(t.alpha, a / 4);
                _eq(t.beta, b + uint256(f) * 50e5);
            }
        }
    }

    function test_score_knownPoints() public pure {
        // Twenty full audits against a prior of twenty: one half. A hundred: 0.83.
        IVerifierCommitteeTypes.TrustState memory t;
        _eq(t.score(20e6), 0);
        t.count(200, 0);
        _eq(t.score(20e6), 500_000);
        for (uint256 i; i < 4; ++i) {
            t.count(200, 0);
        }
        _eq(t.score(20e6), 833_333);
        t.count(250, 1);
        // alpha 100e6 / 4, beta 5e6: one failed unit of ten voids the epoch and three quarters of the past.
        _eq(t.alpha, 25e6);
        _eq(t.beta, 5e6);
        _eq(t.score(20e6), 500_000);
    }
}

contract DrawTest is TestBase {
    function _seats(uint256 n) internal pure returns (address[] memory seats) {
        seats = new address[](n);
        for (uint256 i; i < n; ++i) {
            seats[i] = address(uint160(0x1000 + i));
        }
    }

    function testFuzz_draw_distinctAndWithoutTheNode(bytes32 seed, uint8 n, uint8 size, uint8 self) public pure {
        address[] memory seats = _seats(_bound(n, 0, 40));
        size = uint8(_bound(size, 1, 15));
        address node = address(uint160(0x1000 + _bound(self, 0, 80)));
        address[] memory members = Draw.draw(seed, node, seats, size);
        uint256 eligible = seats.length;
        if (uint160(node) - 0x1000 < seats.length) --eligible;
        _eq(members.length, size < eligible ? size : eligible);
        _eq(Draw.sizeFor(node, seats, size), members.length);
        for (uint256 i; i < members.length; ++i) {
            _true(members[i] != node, "a node never judges itself");
            _eq(Draw.positionOf(members, members[i]), i);
            bool seated;
            for (uint256 j; j < seats.length; ++j) {
                if (seats[j] == members[i]) seated = true;
            }
            _true(seated, "members have seats");
        }
        _eq(Draw.positionOf(members, address(1)), members.length);
    }

    function testFuzz_draw_equalsAPlainShuffle(bytes32 seed, uint160 node_) public pure {
        address node = address(node_);
        address[] memory seats = _seats(9);
        vm.assume(node_ < 0x1000 || node_ >= 0x1009);
        address[] memory members = Draw.draw(seed, node, seats, 5);
        bytes32 h = keccak256(abi.encode(seed, node));
        for (uint256 i; i < 5; ++i) {
            uint256 j = i + uint256(keccak256(abi.encode(h, i))) % (9 - i);
            (seats[i], seats[j]) = (seats[j], seats[i]);
            _eqAddress(members[i], seats[i]);
        }
    }

    function test_draw_reachesEverySeat() public pure {
        address[] memory seats = _seats(6);
        uint256[6] memory hits;
        for (uint256 k; k < 600; ++k) {
            address[] memory members = Draw.draw(bytes32(k), address(0xBEEF), seats, 2);
            for (uint256 i; i < 2; ++i) {
                ++hits[uint160(members[i]) - 0x1000];
            }
        }
        // 200 each are expected; 140 is more than five standard deviations away.
        for (uint256 i; i < 6; ++i) {
            _true(hits[i] > 140 && hits[i] < 260, "uniform");
        }
    }
}

contract TallyWordTest is TestBase {
    using TallyWord for uint256;

    function testFuzz_word_roundTrip(uint16[15] memory verdicts, uint16 mask) public pure {
        uint256 word;
        uint256 count;
        for (uint256 i; i < 15; ++i) {
            if ((mask >> i) & 1 == 0) continue;
            _true(!word.has(i), "free");
            word = word.add(i, verdicts[i]);
            ++count;
        }
        _eq(word.reveals(), count);
        _true(!word.isClosed(), "open");
        word = word.close();
        _true(word.isClosed(), "closed");
        _eq(word.reveals(), count);
        for (uint256 i; i < 15; ++i) {
            bool present = (mask >> i) & 1 != 0;
            _true(word.has(i) == present, "mask");
            _eq(word.verdictOf(i), present ? verdicts[i] : 0);
        }
    }

    function testFuzz_outcome_isTheLowerMedian(uint16[15] memory verdicts, uint8 size) public pure {
        uint256 n = _bound(size, 1, 15);
        uint256 word;
        uint256 severe;
        for (uint256 i; i < n; ++i) {
            word = word.add(i, verdicts[i]);
            if (verdicts[i] >= 0x8000) ++severe;
        }
        (uint16 passed, uint16 failed, uint256 severe_) = word.outcome();
        _eq(severe_, severe);
        _isLowerMedian(verdicts, n, passed, 0, 0xFF);
        _isLowerMedian(verdicts, n, failed, 8, 0x7F);
    }

    function _isLowerMedian(uint16[15] memory v, uint256 n, uint256 m, uint256 shift, uint256 mask) private pure {
        uint256 below;
        uint256 upTo;
        for (uint256 i; i < n; ++i) {
            uint256 x = (uint256(v[i]) >> shift) & mask;
            if (x < m) ++below;
            if (x <= m) ++upTo;
        }
        uint256 index = (n - 1) / 2;
        _true(below <= index && index < upTo, "order statistic");
    }

    function test_outcome_ofNothing() public pure {
        (uint16 passed, uint16 failed, uint256 severe) = uint256(0).outcome();
        _eq(uint256(passed) + failed + severe, 0);
    }
}
