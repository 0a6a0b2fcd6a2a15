// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {IAccessControl} from "@openzeppelin/contracts/access/IAccessControl.sol";
import {SeatRegistry} from "../../contracts/SeatRegistry.sol";
import {ISeatRegistryErrors, ISeatRegistryTypes} from "../../contracts/interfaces/ISeatRegistry.sol";
import {Fixture} from "./Fixture.sol";

contract SeatsTest is Fixture {
    address internal fresh = address(0xF4E5);

    function test_seats_actFromTheNextEpoch() public {
        _eq(seats.seatCount(1), 0);
        _eq(seats.seatCount(2), 5);
        _at(2, 0);
        vm.prank(verifiers[1]);
        seats.leaveSeat();
        _eq(seats.seatCount(2), 5);
        _eq(seats.seatCount(3), 4);
        address[] memory left = seats.seatsOf(3);
        for (uint256 i; i < left.length; ++i) {
            _true(left[i] != verifiers[1], "left");
        }
    }

    function test_RevertWhen_takingASeatTwiceOrWithoutStake() public {
        vm.expectRevert(abi.encodeWithSelector(ISeatRegistryErrors.SeatTakenAlready.selector, verifiers[0]));
        vm.prank(verifiers[0]);
        seats.takeSeat();
        vm.expectRevert(abi.encodeWithSelector(ISeatRegistryErrors.SeatStakeTooLow.selector, SEAT_STAKE, 0));
        vm.prank(fresh);
        seats.takeSeat();
    }

    function test_leave_canBeTakenBackInTheSameEpoch() public {
        _at(2, 0);
        vm.startPrank(verifiers[0]);
        seats.leaveSeat();
        seats.takeSeat();
        vm.stopPrank();
        _eq(seats.seatCount(2), 5);
        _eq(seats.seatCount(3), 5);
    }

    function test_leave_thenRetakeAfterCoolingOnly() public {
        _at(2, 0);
        vm.prank(verifiers[0]);
        seats.leaveSeat();
        _at(4, 0);
        vm.expectRevert(abi.encodeWithSelector(ISeatRegistryErrors.SeatCooling.selector, 5));
        vm.prank(verifiers[0]);
        seats.takeSeat();
        _at(5, 0);
        vm.prank(verifiers[0]);
        seats.takeSeat();
        _eq(seats.seatCount(5), 4);
        _eq(seats.seatCount(6), 5);
    }

    function test_RevertWhen_leavingWithoutASeat() public {
        vm.expectRevert(abi.encodeWithSelector(ISeatRegistryErrors.NoSeat.selector, fresh));
        vm.prank(fresh);
        seats.leaveSeat();
        vm.startPrank(verifiers[0]);
        seats.leaveSeat();
        vm.expectRevert(abi.encodeWithSelector(ISeatRegistryErrors.NoSeat.selector, verifiers[0]));
        seats.leaveSeat();
        vm.stopPrank();
    }

    function test_place_reusesSeatsThatWereLeftLongAgo() public {
        _at(2, 0);
        vm.prank(verifiers[2]);
        seats.leaveSeat();
        _at(5, 0);
        _seat(fresh);
        address[] memory held = seats.seatsOf(6);
        _eq(held.length, 5);
        _eqAddress(held[2], fresh);
        // The former owner starts over behind the others.
        vm.prank(verifiers[2]);
        seats.takeSeat();
        _eqAddress(seats.seatsOf(6)[5], verifiers[2]);
    }

    function test_loops_areBounded() public {
        for (uint256 i = 5; i < 64; ++i) {
            _seat(address(uint160(0xAA00 + i)));
        }
        _stake(fresh, SEAT_STAKE);
        vm.expectRevert(abi.encodeWithSelector(ISeatRegistryErrors.SeatsFull.selector, 64));
        vm.prank(fresh);
        seats.takeSeat();
        _eq(seats.seatCount(2), 64);
    }

    function test_evict_onlyWithoutStake() public {
        vm.expectRevert(
            abi.encodeWithSelector(ISeatRegistryErrors.SeatSupported.selector, verifiers[0], 75 ether, SEAT_STAKE)
        );
        seats.evictSeat(verifiers[0]);
        vm.prank(verifiers[0]);
        vault.unbond(25 ether + 1);
        seats.evictSeat(verifiers[0]);
        _eq(seats.seatCount(2), 4);
        vm.expectRevert(abi.encodeWithSelector(ISeatRegistryErrors.NoSeat.selector, fresh));
        seats.evictSeat(fresh);
    }
}

contract SeedsTest is Fixture {
    function test_seed_isFixedFromTheBlockTwoAfterArming() public {
        _at(3, 0);
        vm.roll(5_000);
        seats.armSeed(2);
        _eq(seats.armedBlock(2), 5_002);
        vm.expectRevert(abi.encodeWithSelector(ISeatRegistryErrors.SeedNotReady.selector, 5_002, 5_000));
        seats.fixSeed(2);
        vm.roll(5_002);
        vm.expectRevert(abi.encodeWithSelector(ISeatRegistryErrors.SeedNotReady.selector, 5_002, 5_002));
        seats.fixSeed(2);
        vm.roll(5_003);
        seats.fixSeed(2);
        _eq32(seats.seedOf(2), keccak256(abi.encode(blockhash(5_002), bytes32(0), uint64(2))));
        vm.expectRevert(abi.encodeWithSelector(ISeatRegistryErrors.SeedAlreadyFixed.selector, 2));
        seats.fixSeed(2);
        vm.expectRevert(abi.encodeWithSelector(ISeatRegistryErrors.SeedAlreadyFixed.selector, 2));
        seats.armSeed(2);
    }

    function test_seed_isArmedAgainOnlyWhenItsBlockIsOutOfReach() public {
        _at(3, 0);
        vm.roll(5_000);
        seats.armSeed(2);
        vm.roll(5_002 + 256);
        vm.expectRevert(abi.encodeWithSelector(ISeatRegistryErrors.SeedAlreadyArmed.selector, 5_002));
        seats.armSeed(2);
        vm.roll(5_002 + 257);
        vm.expectRevert(abi.encodeWithSelector(ISeatRegistryErrors.SeedExpired.selector, 5_002, 5_002 + 257));
        seats.fixSeed(2);
        seats.armSeed(2);
        _eq(seats.armedBlock(2), 5_002 + 259);
    }

    function test_RevertWhen_theEpochIsNotOver() public {
        _at(2, 2);
        vm.expectRevert(abi.encodeWithSelector(ISeatRegistryErrors.EpochNotOver.selector, 2, 2));
        seats.armSeed(2);
        vm.expectRevert(abi.encodeWithSelector(ISeatRegistryErrors.EpochNotOver.selector, 0, 2));
        seats.armSeed(0);
    }

    function test_RevertWhen_fixingWithoutArming() public {
        vm.expectRevert(abi.encodeWithSelector(ISeatRegistryErrors.SeedNotArmed.selector, 2));
        seats.fixSeed(2);
    }

    function test_draw_distinctAndEmptyBeforeTheSeed() public {
        _at(2, 0);
        _eq(seats.drawn(2, nodes[0]).length, 0);
        _fixSeed(2);
        address[] memory members = seats.drawn(2, nodes[0]);
        _eq(members.length, 3);
        _true(members[0] != members[1] && members[1] != members[2] && members[0] != members[2], "distinct");
        uint256 count;
        for (uint256 i; i < 5; ++i) {
            if (seats.isDrawn(2, nodes[0], verifiers[i])) ++count;
        }
        _eq(count, 3);
    }

    function test_draw_skipsTheNodeItselfAndLaterSeats() public {
        _stake(nodes[0], SEAT_STAKE);
        vm.prank(nodes[0]);
        seats.takeSeat();
        _at(2, 0);
        _seat(address(0xF4E5));
        _fixSeed(2);
        for (uint256 i; i < 50; ++i) {
            address[] memory members = seats.drawn(2, address(uint160(i)));
            for (uint256 j; j < members.length; ++j) {
                _true(members[j] != address(0xF4E5), "seats of epoch 3 do not judge epoch 2");
            }
        }
        _true(!seats.isDrawn(2, nodes[0], nodes[0]), "itself");
    }

    function test_terms_notRetroactive_sizeIsFixedWithTheSeed() public {
        _at(2, 0);
        _fixSeed(2);
        seats.setTerms(ISeatRegistryTypes.Terms(5, SEAT_STAKE));
        _eq(seats.terms().committeeSize, 3);
        _at(4, 0);
        _eq(seats.terms().committeeSize, 5);
        _eq(seats.drawn(2, nodes[0]).length, 3);
    }
}

contract SeatTermsTest is Fixture {
    function _rejects(ISeatRegistryTypes.Terms memory t, bytes32 name, uint256 v, uint256 min, uint256 max) internal {
        bytes memory error_ = abi.encodeWithSelector(ISeatRegistryErrors.ParamOutOfBounds.selector, name, v, min, max);
        vm.expectRevert(error_);
        seats.setTerms(t);
        vm.expectRevert(error_);
        new SeatRegistry(vault, GENESIS, EPOCH, t, address(this));
    }

    function test_RevertWhen_termsAreOutOfBounds() public {
        _rejects(ISeatRegistryTypes.Terms(0, SEAT_STAKE), "committeeSize", 0, 1, 15);
        _rejects(ISeatRegistryTypes.Terms(16, SEAT_STAKE), "committeeSize", 16, 1, 15);
        _rejects(ISeatRegistryTypes.Terms(3, 0), "seatStake", 0, 1, type(uint96).max);
    }

    function test_setTerms_areDueNextEpochAndCanBeReplaced() public {
        seats.setTerms(ISeatRegistryTypes.Terms(7, 1));
        seats.setTerms(ISeatRegistryTypes.Terms(8, 2));
        _eq(seats.terms().committeeSize, 3);
        _eq(seats.terms().seatStake, SEAT_STAKE);
        _at(2, 0);
        _eq(seats.terms().committeeSize, 8);
        seats.setTerms(ISeatRegistryTypes.Terms(9, 3));
        _eq(seats.terms().committeeSize, 8);
        _eq(seats.terms().seatStake, 2);
        _at(3, 0);
        _eq(seats.terms().committeeSize, 9);
        _eq(seats.terms().seatStake, 3);
    }

    function test_RevertWhen_strangersSetTermsOrStir() public {
        bytes32 role = seats.COMMITTEE_ROLE();
        vm.startPrank(client);
        vm.expectRevert(
            abi.encodeWithSelector(IAccessControl.AccessControlUnauthorizedAccount.selector, client, bytes32(0))
        );
        seats.setTerms(_terms());
        vm.expectRevert(abi.encodeWithSelector(IAccessControl.AccessControlUnauthorizedAccount.selector, client, role));
        seats.stir("salt");
        vm.stopPrank();
    }

    function test_RevertWhen_seatedForAnotherEpochOrWithoutSeed() public {
        _at(3, 0);
        vm.expectRevert(abi.encodeWithSelector(ISeatRegistryErrors.SeedNotFixed.selector, 2));
        seats.checkSeated(2, verifiers[0]);
        vm.expectRevert(abi.encodeWithSelector(ISeatRegistryErrors.SeedNotFixed.selector, 2));
        seats.sizesOf(2, nodes);
        _fixSeed(2);
        seats.checkSeated(2, verifiers[0]);
        vm.expectRevert(abi.encodeWithSelector(ISeatRegistryErrors.NotSeated.selector, 1, verifiers[0]));
        seats.placesOf(1, verifiers[0], nodes);
    }

    /// forge-config: default.fuzz.runs = 64
    function testFuzz_places_agreeWithTheDraw(uint160 salt) public {
        _at(2, 0);
        _fixSeed(2);
        address[] memory list = new address[](4);
        for (uint160 i; i < 4; ++i) {
            list[i] = address(salt / 2 + i);
        }
        list[3] = nodes[1];
        uint256[] memory sizes = seats.sizesOf(2, list);
        for (uint256 v; v < verifiers.length; ++v) {
            (uint256 seat, ISeatRegistryTypes.Place[] memory places) = seats.placesOf(2, verifiers[v], list);
            _eq(seat + 1, seats.seatNumberOf(verifiers[v]));
            for (uint256 i; i < 4; ++i) {
                address[] memory members = seats.drawn(2, list[i]);
                _eq(places[i].size, members.length);
                _eq(sizes[i], members.length);
                bool member = places[i].position < places[i].size;
                _true(member == seats.isDrawn(2, list[i], verifiers[v]), "a place is a draw");
                if (member) _eqAddress(members[places[i].position], verifiers[v]);
            }
        }
    }
}
