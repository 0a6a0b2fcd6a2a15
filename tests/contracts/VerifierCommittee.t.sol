// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {IAccessControl} from "@openzeppelin/contracts/access/IAccessControl.sol";
import {VerifierCommittee} from "../../contracts/VerifierCommittee.sol";
import {IVerifierCommitteeErrors, IVerifierCommitteeTypes} from "../../contracts/interfaces/IVerifierCommittee.sol";
import {Fixture} from "./Fixture.sol";

contract CommitteeSeatsTest is Fixture {
    address internal fresh = address(0xF4E5);

    function test_seats_actFromTheNextEpoch() public {
        _eq(committee.seatCount(1), 0);
        _eq(committee.seatCount(2), 5);
        _at(2, 0);
        vm.prank(verifiers[1]);
        committee.leaveSeat();
        _eq(committee.seatCount(2), 5);
        _eq(committee.seatCount(3), 4);
        address[] memory left = committee.seatsOf(3);
        for (uint256 i; i < left.length; ++i) {
            _true(left[i] != verifiers[1], "left");
        }
    }

    function test_RevertWhen_takingASeatTwiceOrWithoutStake() public {
        vm.expectRevert(abi.encodeWithSelector(IVerifierCommitteeErrors.SeatTakenAlready.selector, verifiers[0]));
        vm.prank(verifiers[0]);
        committee.takeSeat();
        vm.expectRevert(abi.encodeWithSelector(IVerifierCommitteeErrors.SeatStakeTooLow.selector, SEAT_STAKE, 0));
        vm.prank(fresh);
        committee.takeSeat();
    }

    function test_leave_canBeTakenBackInTheSameEpoch() public {
        _at(2, 0);
        vm.startPrank(verifiers[0]);
        committee.leaveSeat();
        committee.takeSeat();
        vm.stopPrank();
        _eq(committee.seatCount(2), 5);
        _eq(committee.seatCount(3), 5);
    }

    function test_leave_thenRetakeAfterCoolingOnly() public {
        _at(2, 0);
        vm.prank(verifiers[0]);
        committee.leaveSeat();
        _at(4, 0);
        vm.expectRevert(abi.encodeWithSelector(IVerifierCommitteeErrors.SeatCooling.selector, 5));
        vm.prank(verifiers[0]);
        committee.takeSeat();
        _at(5, 0);
        vm.prank(verifiers[0]);
        committee.takeSeat();
        _eq(committee.seatCount(5), 4);
        _eq(committee.seatCount(6), 5);
    }

    function test_RevertWhen_leavingWithoutASeat() public {
        vm.expectRevert(abi.encodeWithSelector(IVerifierCommitteeErrors.NoSeat.selector, fresh));
        vm.prank(fresh);
        committee.leaveSeat();
        vm.startPrank(verifiers[0]);
        committee.leaveSeat();
        vm.expectRevert(abi.encodeWithSelector(IVerifierCommitteeErrors.NoSeat.selector, verifiers[0]));
        committee.leaveSeat();
        vm.stopPrank();
    }

    function test_place_reusesSeatsThatWereLeftLongAgo() public {
        _at(2, 0);
        vm.prank(verifiers[2]);
        committee.leaveSeat();
        _at(5, 0);
        _seat(fresh);
        address[] memory seats = committee.seatsOf(6);
        _eq(seats.length, 5);
        _eqAddress(seats[2], fresh);
        // The former owner starts over behind the others.
        vm.prank(verifiers[2]);
        committee.takeSeat();
        _eqAddress(committee.seatsOf(6)[5], verifiers[2]);
    }

    function test_loops_areBounded() public {
        for (uint256 i = 5; i < 64; ++i) {
            _seat(address(uint160(0xAA00 + i)));
        }
        _stake(fresh, SEAT_STAKE);
        vm.expectRevert(abi.encodeWithSelector(IVerifierCommitteeErrors.SeatsFull.selector, 64));
        vm.prank(fresh);
        committee.takeSeat();
        _eq(committee.seatCount(2), 64);
    }

    function test_evict_onlyWithoutStake() public {
        vm.expectRevert(
            abi.encodeWithSelector(IVerifierCommitteeErrors.SeatSupported.selector, verifiers[0], 75 ether, SEAT_STAKE)
        );
        committee.evictSeat(verifiers[0]);
        vm.prank(verifiers[0]);
        vault.unbond(25 ether + 1);
        committee.evictSeat(verifiers[0]);
        _eq(committee.seatCount(2), 4);
        vm.expectRevert(abi.encodeWithSelector(IVerifierCommitteeErrors.NoSeat.selector, fresh));
        committee.evictSeat(fresh);
    }
}

contract CommitteeSeedsTest is Fixture {
    function test_seed_isFixedFromTheBlockTwoAfterArming() public {
        _at(3, 0);
        vm.roll(5_000);
        committee.armSeed(2);
        _eq(committee.armedBlock(2), 5_002);
        vm.expectRevert(abi.encodeWithSelector(IVerifierCommitteeErrors.SeedNotReady.selector, 5_002, 5_000));
        committee.fixSeed(2);
        vm.roll(5_002);
        vm.expectRevert(abi.encodeWithSelector(IVerifierCommitteeErrors.SeedNotReady.selector, 5_002, 5_002));
        committee.fixSeed(2);
        vm.roll(5_003);
        committee.fixSeed(2);
        _eq32(committee.seedOf(2), keccak256(abi.encode(blockhash(5_002), bytes32(0), uint64(2))));
        vm.expectRevert(abi.encodeWithSelector(IVerifierCommitteeErrors.SeedAlreadyFixed.selector, 2));
        committee.fixSeed(2);
        vm.expectRevert(abi.encodeWithSelector(IVerifierCommitteeErrors.SeedAlreadyFixed.selector, 2));
        committee.armSeed(2);
    }

    function test_seed_isArmedAgainOnlyWhenItsBlockIsOutOfReach() public {
        _at(3, 0);
        vm.roll(5_000);
        committee.armSeed(2);
        vm.roll(5_002 + 256);
        vm.expectRevert(abi.encodeWithSelector(IVerifierCommitteeErrors.SeedAlreadyArmed.selector, 5_002));
        committee.armSeed(2);
        vm.roll(5_002 + 257);
        vm.expectRevert(abi.encodeWithSelector(IVerifierCommitteeErrors.SeedExpired.selector, 5_002, 5_002 + 257));
        committee.fixSeed(2);
        committee.armSeed(2);
        _eq(committee.armedBlock(2), 5_002 + 259);
    }

    function test_RevertWhen_theEpochIsNotOver() public {
        _at(2, 2);
        vm.expectRevert(abi.encodeWithSelector(IVerifierCommitteeErrors.EpochNotOver.selector, 2, 2));
        committee.armSeed(2);
        vm.expectRevert(abi.encodeWithSelector(IVerifierCommitteeErrors.EpochNotOver.selector, 0, 2));
        committee.armSeed(0);
    }

    function test_RevertWhen_fixingWithoutArming() public {
        vm.expectRevert(abi.encodeWithSelector(IVerifierCommitteeErrors.SeedNotArmed.selector, 2));
        committee.fixSeed(2);
    }

    function test_draw_distinctAndEmptyBeforeTheSeed() public {
        _at(2, 0);
        _eq(committee.drawn(2, nodes[0]).length, 0);
        _fixSeed(2);
        address[] memory members = committee.drawn(2, nodes[0]);
        _eq(members.length, 3);
        _true(members[0] != members[1] && members[1] != members[2] && members[0] != members[2], "distinct");
        uint256 count;
        for (uint256 i; i < 5; ++i) {
            if (committee.isDrawn(2, nodes[0], verifiers[i])) ++count;
        }
        _eq(count, 3);
    }

    function test_draw_skipsTheNodeItselfAndLaterSeats() public {
        _stake(nodes[0], SEAT_STAKE);
        vm.prank(nodes[0]);
        committee.takeSeat();
        _at(2, 0);
        _seat(address(0xF4E5));
        _fixSeed(2);
        for (uint256 i; i < 50; ++i) {
            address[] memory members = committee.drawn(2, address(uint160(i)));
            for (uint256 j; j < members.length; ++j) {
                _true(members[j] != address(0xF4E5), "seats of epoch 3 do not judge epoch 2");
            }
        }
        _true(!committee.isDrawn(2, nodes[0], nodes[0]), "itself");
    }

    function test_params_notRetroactive_sizeIsFixedWithTheSeed() public {
        _at(2, 0);
        _fixSeed(2);
        IVerifierCommitteeTypes.Params memory p = _params();
        p.committeeSize = 5;
        committee.setParams(p);
        _eq(committee.params().committeeSize, 3);
        _at(4, 0);
        _eq(committee.params().committeeSize, 5);
        _eq(committee.drawn(2, nodes[0]).length, 3);
    }
}

contract CommitteeParamsTest is Fixture {
    function _rejects(IVerifierCommitteeTypes.Params memory p, bytes32 name, uint256 v, uint256 min, uint256 max)
        internal
    {
        bytes memory error_ =
            abi.encodeWithSelector(IVerifierCommitteeErrors.ParamOutOfBounds.selector, name, v, min, max);
        vm.expectRevert(error_);
        committee.setParams(p);
        vm.expectRevert(error_);
        new VerifierCommittee(vault, registry, GENESIS, EPOCH, p, address(this));
    }

    function test_RevertWhen_aParameterIsOutOfBounds() public {
        IVerifierCommitteeTypes.Params memory p = _params();
        p.committeeSize = 0;
        _rejects(p, "committeeSize", 0, 1, 15);
        p.committeeSize = 16;
        _rejects(p, "committeeSize", 16, 1, 15);
        p = _params();
        p.theta = 900_001;
        _rejects(p, "theta", 900_001, 0, 900_000);
        p = _params();
        p.reentry = 299_999;
        _rejects(p, "reentry", 299_999, 300_000, 900_000);
        p = _params();
        p.priorMass = 0;
        _rejects(p, "priorMass", 0, 1e5, 1e12);
        p = _params();
        p.pMin = 999;
        _rejects(p, "pMin", 999, 1_000, 1e6);
        p = _params();
        p.pMax = 1e6 + 1;
        _rejects(p, "pMax", 1e6 + 1, 100_000, 1e6);
        p = _params();
        p.slashFirstBps = 0;
        _rejects(p, "slashFirstBps", 0, 1, 10_000);
        p = _params();
        p.slashRepeatBps = 1_999;
        _rejects(p, "slashRepeatBps", 1_999, 2_000, 10_000);
        p = _params();
        p.noRevealBps = 1_001;
        _rejects(p, "noRevealBps", 1_001, 0, 1_000);
        p = _params();
        p.deviationBps = 2_001;
        _rejects(p, "deviationBps", 2_001, 0, 2_000);
        p = _params();
        p.probationCapBps = 10_001;
        _rejects(p, "probationCapBps", 10_001, 1, 10_000);
        p = _params();
        p.exclusionEpochs = 1;
        _rejects(p, "exclusionEpochs", 1, 2, 100_000);
        p = _params();
        p.seatStake = 0;
        _rejects(p, "seatStake", 0, 1, type(uint96).max);
    }

    function test_setParams_isDueNextEpochAndCanBeReplaced() public {
        IVerifierCommitteeTypes.Params memory p = _params();
        p.theta = 1;
        committee.setParams(p);
        p.theta = 2;
        committee.setParams(p);
        _eq(committee.params().theta, 300_000);
        _at(2, 0);
        _eq(committee.params().theta, 2);
        p.theta = 3;
        committee.setParams(p);
        _eq(committee.params().theta, 2);
        _at(3, 0);
        _eq(committee.params().theta, 3);
        _eq(committee.params().seatStake, SEAT_STAKE);
    }

    function test_RevertWhen_notAdmin() public {
        vm.expectRevert(
            abi.encodeWithSelector(IAccessControl.AccessControlUnauthorizedAccount.selector, client, bytes32(0))
        );
        vm.prank(client);
        committee.setParams(_params());
    }
}

contract CommitteeRevealTest is Fixture {
    Report internal mine;

    function setUp() public override {
        super.setUp();
        _at(2, 0);
        _fixSeed(2);
        Report[] memory all = _reports(2, nodes, _verdict(10, 0, false));
        mine = all[0];
    }

    function _wrongPhase(uint64 e, uint8 wanted, uint64 current, uint8 now_) internal {
        vm.expectRevert(abi.encodeWithSelector(IVerifierCommitteeErrors.WrongPhase.selector, e, wanted, current, now_));
    }

    function test_commit_and_reveal() public {
        _commit(2, mine);
        _eq32(committee.commitmentOf(2, mine.verifier), _commitment(2, mine));
        _true(!committee.hasRevealed(2, mine.verifier), "not revealed");
        _at(3, 1);
        _reveal(2, mine);
        _true(committee.hasRevealed(2, mine.verifier), "revealed");
        _eq32(committee.commitmentOf(2, mine.verifier), keccak256(abi.encode(mine.nodes)));
        IVerifierCommitteeTypes.Tally memory t = committee.tallyOf(2, mine.nodes[0]);
        _eq(t.reveals, 1);
        _eq(t.drawn, 3);
        _eq(t.passed, 10);
        _true(!t.quorum && !t.finalized, "one of three is no quorum");
        _true(committee.isPending(2, mine.nodes[0]), "pending");
    }

    function test_RevertWhen_outOfPhase() public {
        _at(3, 1);
        _wrongPhase(2, 0, 3, 1);
        _commit(2, mine);
        _at(2, 0);
        _wrongPhase(2, 0, 2, 0);
        _commit(2, mine);
        _at(3, 0);
        _commit(2, mine);
        _wrongPhase(2, 1, 3, 0);
        _reveal(2, mine);
        _at(3, 2);
        _wrongPhase(2, 1, 3, 2);
        _reveal(2, mine);
        _at(4, 1);
        _wrongPhase(2, 1, 4, 1);
        _reveal(2, mine);
        _at(3, 1);
        _wrongPhase(2, 2, 3, 1);
        committee.finalize(2, nodes);
        _wrongPhase(2, 2, 3, 1);
        committee.judgeVerifier(2, mine.verifier, nodes);
    }

    function test_RevertWhen_committingBadly() public {
        vm.startPrank(verifiers[0]);
        vm.expectRevert(IVerifierCommitteeErrors.EmptyCommitment.selector);
        committee.commit(2, 0);
        committee.commit(2, "h");
        vm.expectRevert(abi.encodeWithSelector(IVerifierCommitteeErrors.AlreadyCommitted.selector, 2, verifiers[0]));
        committee.commit(2, "h");
        vm.stopPrank();
        vm.expectRevert(abi.encodeWithSelector(IVerifierCommitteeErrors.NotSeated.selector, 2, client));
        vm.prank(client);
        committee.commit(2, "h");
        _at(4, 0);
        vm.expectRevert(abi.encodeWithSelector(IVerifierCommitteeErrors.SeedNotFixed.selector, 3));
        vm.prank(verifiers[0]);
        committee.commit(3, "h");
    }

    function test_results_cannotBeCopied() public {
        // The same hash under another name does not open.
        address copier = mine.verifier == verifiers[0] ? verifiers[1] : verifiers[0];
        bytes32 h = _commitment(2, mine);
        vm.prank(copier);
        committee.commit(2, h);
        _at(3, 1);
        Report memory copy = Report(copier, mine.nodes, mine.verdicts);
        bytes32 actual = _commitment(2, copy);
        vm.expectRevert(abi.encodeWithSelector(IVerifierCommitteeErrors.CommitmentMismatch.selector, h, actual));
        _reveal(2, copy);
    }

    function test_RevertWhen_revealingWithoutACommitmentOrTwice() public {
        _commit(2, mine);
        _at(3, 1);
        address other = mine.verifier == verifiers[0] ? verifiers[1] : verifiers[0];
        Report memory nothing = Report(other, new address[](0), new uint16[](0));
        vm.expectRevert(abi.encodeWithSelector(IVerifierCommitteeErrors.NothingToReveal.selector, 2, other));
        _reveal(2, nothing);
        _reveal(2, mine);
        vm.expectRevert(abi.encodeWithSelector(IVerifierCommitteeErrors.NothingToReveal.selector, 2, mine.verifier));
        _reveal(2, mine);
    }

    function test_RevertWhen_lengthsDiffer() public {
        _commit(2, mine);
        _at(3, 1);
        vm.expectRevert(abi.encodeWithSelector(IVerifierCommitteeErrors.LengthMismatch.selector, 1, 0, 1));
        vm.prank(mine.verifier);
        committee.reveal(2, _one(nodes[0]), new uint16[](0), new bytes32[](1), SALT);
    }

    function test_RevertWhen_aNodeStandsTwice() public {
        Report memory twice = Report(mine.verifier, new address[](2), new uint16[](2));
        (twice.nodes[0], twice.nodes[1]) = (mine.nodes[0], mine.nodes[0]);
        _commit(2, twice);
        _at(3, 1);
        vm.expectRevert(abi.encodeWithSelector(IVerifierCommitteeErrors.DuplicateNode.selector, mine.nodes[0]));
        _reveal(2, twice);
    }

    function test_RevertWhen_theAddressIsNoNode() public {
        Report memory r = Report(mine.verifier, _one(address(0xBAD)), new uint16[](1));
        _commit(2, r);
        _at(3, 1);
        vm.expectRevert(abi.encodeWithSelector(IVerifierCommitteeErrors.UnknownNode.selector, address(0xBAD)));
        _reveal(2, r);
    }

    function test_RevertWhen_notDrawn() public {
        address outsider;
        for (uint256 i; i < 5; ++i) {
            if (!committee.isDrawn(2, nodes[0], verifiers[i])) outsider = verifiers[i];
        }
        Report memory r = Report(outsider, _one(nodes[0]), new uint16[](1));
        _commit(2, r);
        _at(3, 1);
        vm.expectRevert(abi.encodeWithSelector(IVerifierCommitteeErrors.NotDrawn.selector, 2, nodes[0], outsider));
        _reveal(2, r);
    }

    function test_RevertWhen_severeWithoutAFailure() public {
        mine.verdicts[0] = _verdict(10, 0, true);
        _commit(2, mine);
        _at(3, 1);
        vm.expectRevert(
            abi.encodeWithSelector(IVerifierCommitteeErrors.InvalidVerdict.selector, mine.nodes[0], mine.verdicts[0])
        );
        _reveal(2, mine);
    }

    function test_reveal_mixesTheNextSeed() public {
        _submit(2, _reports(2, nodes, _verdict(10, 0, false)));
        _fixSeed(3);
        bytes32 plain = keccak256(abi.encode(blockhash(committee.armedBlock(3)), bytes32(0), uint64(3)));
        _true(committee.seedOf(3) != plain, "salts went in");
    }
}
