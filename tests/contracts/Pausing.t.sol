// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {IEntryPause} from "../../contracts/interfaces/IEntryPause.sol";
import {ISessionEscrowTypes} from "../../contracts/interfaces/ISessionEscrow.sol";
import {Fixture} from "./Fixture.sol";

contract PausingTest is Fixture {
    ISessionEscrowTypes.SessionKey internal key;

    function setUp() public override {
        super.setUp();
        _at(2, 0);
        key = _key(1);
        _open(key, 10 ether);
    }

    function _pauseAll() internal {
        registry.setEntryPaused(true);
        seats.setEntryPaused(true);
        escrow.setEntryPaused(true);
        batches.setEntryPaused(true);
    }

    function test_pause_closesTheEntry() public {
        _pauseAll();
        bytes4 paused = IEntryPause.EntryIsPaused.selector;
        vm.expectRevert(paused);
        _register(address(0xF4E5), 0, 4);
        vm.expectRevert(paused);
        vm.prank(address(0xF4E5));
        seats.takeSeat();
        vm.expectRevert(paused);
        vm.prank(client);
        escrow.open(key, 1);
        vm.expectRevert(paused);
        escrow.openWithSig(key, 1, type(uint256).max, "");
        vm.expectRevert(paused);
        vm.prank(nodes[0]);
        batches.post(_epoch(), 0, "root", 1);
        batches.setEntryPaused(false);
        vm.prank(nodes[0]);
        batches.post(_epoch(), 0, "root", 1);
    }

    function test_RevertWhen_notGuardian() public {
        vm.expectRevert(abi.encodeWithSelector(IEntryPause.NotGuardian.selector, client));
        vm.prank(client);
        escrow.setEntryPaused(true);
        vault.grantRole(vault.GUARDIAN_ROLE(), client);
        vm.prank(client);
        escrow.setEntryPaused(true);
        _true(escrow.entryPaused(), "paused");
        vault.revokeRole(vault.GUARDIAN_ROLE(), client);
        vm.expectRevert(abi.encodeWithSelector(IEntryPause.NotGuardian.selector, client));
        vm.prank(client);
        escrow.setEntryPaused(false);
    }

    function test_pause_neverBlocksExits_settlements_or_claims() public {
        _pauseAll();
        _settle(key, 6 ether);
        _judge(2, nodes, _verdict(10, 0, false));
        Report[] memory r = _reports(2, nodes, _verdict(10, 0, false));
        committee.judgeVerifier(2, r[0].verifier, r[0].nodes);
        pool.weigh(2, nodes);
        _at(4, 0);
        vm.startPrank(nodes[0]);
        pool.claim(_one(uint64(2)));
        escrow.withdrawFees(nodes[0]);
        registry.update(1, nodes[0]);
        registry.pause();
        registry.retire();
        vault.unbond(NODE_STAKE);
        vm.stopPrank();
        vm.startPrank(r[0].verifier);
        pool.claimVerifier(_one(uint64(2)));
        seats.leaveSeat();
        vault.unbond(SEAT_STAKE);
        vm.stopPrank();
        pool.claimTreasury(_one(uint64(2)));
        escrow.sweepProtocolFees();
        vm.prank(client);
        escrow.requestClose(key);
        vm.warp(_now() + UNBONDING);
        escrow.finalizeClose(key);
        uint256 balance = escrow.balanceOf(client);
        vm.prank(client);
        escrow.withdraw(balance);
        vm.prank(nodes[0]);
        vault.withdraw();
        vm.prank(r[0].verifier);
        vault.withdraw();
        _eq(token.balanceOf(client), 1e24 - 6 ether);
    }
}
