// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {CommitmentLog} from "../../contracts/CommitmentLog.sol";
import {IEpochClock} from "../../contracts/interfaces/IEpochClock.sol";
import {Fixture} from "./Fixture.sol";

contract EpochClockTest is Fixture {
    function test_epochs_startAtOne() public {
        _eq(registry.epochOf(GENESIS), 1);
        _eq(registry.epochOf(GENESIS + EPOCH - 1), 1);
        _eq(registry.epochOf(GENESIS + EPOCH), 2);
        _eq(registry.epochStart(1), GENESIS);
        vm.warp(GENESIS + 5 * EPOCH);
        _eq(registry.currentEpoch(), 6);
    }

    function test_phases_areThirds() public {
        uint8[6] memory expected = [0, 0, 1, 1, 2, 2];
        uint256[6] memory offsets = [uint256(0), 29, 30, 59, 60, 89];
        for (uint256 i; i < 6; ++i) {
            vm.warp(GENESIS + 3 * EPOCH + offsets[i]);
            _eq(registry.phase(), expected[i]);
        }
    }

    function test_RevertWhen_readBeforeTheStart() public {
        vm.warp(GENESIS - 1);
        vm.expectRevert(abi.encodeWithSelector(IEpochClock.ClockNotStarted.selector, GENESIS, GENESIS - 1));
        registry.currentEpoch();
    }

    function test_RevertWhen_theLengthIsOutOfBounds() public {
        vm.expectRevert(abi.encodeWithSelector(IEpochClock.EpochLengthOutOfBounds.selector, 2, 3, 30 days));
        new CommitmentLog(registry, GENESIS, 2, WINDOW);
        vm.expectRevert(abi.encodeWithSelector(IEpochClock.EpochLengthOutOfBounds.selector, 30 days + 1, 3, 30 days));
        new CommitmentLog(registry, GENESIS, 30 days + 1, WINDOW);
    }

    function testFuzz_clock_isConsistent(uint40 elapsed, uint32 length) public {
        length = uint32(_bound(length, 3, 30 days));
        CommitmentLog clock = new CommitmentLog(registry, GENESIS, length, WINDOW);
        uint256 t = uint256(GENESIS) + elapsed;
        vm.warp(t);
        uint64 e = clock.currentEpoch();
        uint256 start = clock.epochStart(e);
        _true(start <= t && t < start + length, "inside its epoch");
        _eq(clock.epochOf(start), e);
        _eq(clock.phase(), (t - start) * 3 / length);
        _atMost(clock.phase(), 2);
    }
}
