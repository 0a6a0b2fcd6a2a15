// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";
import {ISessionEscrowErrors, ISessionEscrowTypes} from "../../contracts/interfaces/ISessionEscrow.sol";
import {EscrowFixture} from "./EscrowFixture.sol";

contract EscrowCloseTest is EscrowFixture {
    function setUp() public override {
        super.setUp();
        id = _open(key, 10 ether);
    }

    function test_close_afterTheGracePeriod() public {
        vm.prank(client);
        escrow.requestClose(key);
        _eq(_status(), 2);
        uint256 closesAt = _now() + GRACE;
        _eq(escrow.sessionOf(id).closesAt, closesAt);
        vm.expectRevert(abi.encodeWithSelector(ISessionEscrowErrors.TooEarlyToClose.selector, closesAt, _now()));
        escrow.finalizeClose(key);
        // A node that held the newest voucher back still gets paid.
        _settle(key, 4 ether);
        vm.warp(closesAt);
        escrow.finalizeClose(key);
        _eq(_status(), 3);
        _eq(escrow.balanceOf(client), 1e23 - 4 ether);
        _solvent();
    }

    function test_close_byAnyoneAfterExpiryAndGrace() public {
        uint256 closesAt = uint256(key.expiry) + GRACE;
        vm.warp(closesAt - 1);
        vm.expectRevert(abi.encodeWithSelector(ISessionEscrowErrors.TooEarlyToClose.selector, closesAt, closesAt - 1));
        escrow.finalizeClose(key);
        vm.warp(closesAt);
        vm.prank(address(0xBEEF));
        escrow.finalizeClose(key);
        _eq(escrow.balanceOf(client), 1e23);
    }

    function test_state_noDoubleRelease() public {
        vm.prank(client);
        escrow.requestClose(key);
        vm.warp(_now() + GRACE);
        escrow.finalizeClose(key);
        (ISessionEscrowTypes.Voucher memory v, bytes memory sig) = _voucher(id, 1 ether);
        _wrongStatus(3);
        escrow.finalizeClose(key);
        _wrongStatus(3);
        escrow.settle(key, v, sig);
        _wrongStatus(3);
        escrow.closeCooperative(key, v, sig, new bytes[](2));
        vm.startPrank(client);
        _wrongStatus(3);
        escrow.requestClose(key);
        _wrongStatus(3);
        escrow.settleAndClose(key, v, sig);
        _wrongStatus(3);
        escrow.topUp(key, 1);
        vm.stopPrank();
        _settleManyOfOne(key, v, sig);
        _eq(escrow.sessionOf(id).settled, 0);
        _eq(escrow.balanceOf(client), 1e23);
        _solvent();
    }

    function test_requestClose_cannotRestartTheGracePeriod() public {
        vm.startPrank(client);
        escrow.requestClose(key);
        _wrongStatus(2);
        escrow.requestClose(key);
        vm.stopPrank();
    }

    /// @notice The end of the grace period is kept in 32 bits. The money still comes back when they no longer suffice.
    function test_closing_after2106() public {
        ISessionEscrowTypes.SessionKey memory late = _key(2);
        late.expiry = uint40(1 << 32);
        bytes32 lateId = _open(late, 1 ether);
        vm.warp((1 << 32) - 1 - GRACE);
        vm.startPrank(client);
        escrow.requestClose(late);
        _eq(escrow.sessionOf(lateId).closesAt, (1 << 32) - 1);
        late.nonce = 3;
        late.expiry = uint40((1 << 32) + 5);
        escrow.open(late, 1 ether);
        vm.warp((1 << 32) - GRACE);
        vm.expectRevert(
            abi.encodeWithSelector(SafeCast.SafeCastOverflowedUintDowncast.selector, uint8(32), uint256(1 << 32))
        );
        escrow.requestClose(late);
        vm.stopPrank();
        vm.warp(uint256(late.expiry) + GRACE);
        escrow.finalizeClose(late);
        _eq(escrow.balanceOf(client), 1e23 - 11 ether);
    }

    function test_settleAndClose_atOnceWhenNothingIsLeft() public {
        (ISessionEscrowTypes.Voucher memory v, bytes memory sig) = _voucher(id, 10 ether);
        vm.prank(client);
        escrow.settleAndClose(key, v, sig);
        _eq(_status(), 3);
        _eq(escrow.balanceOf(client), 1e23 - 10 ether);
        _solvent();
    }

    function test_escrow_payerCannotRug_withAnOldVoucher() public {
        (ISessionEscrowTypes.Voucher memory old, bytes memory oldSig) = _voucher(id, 1 ether);
        vm.prank(client);
        escrow.settleAndClose(key, old, oldSig);
        _eq(_status(), 2);
        _eq(escrow.sessionOf(id).settled, 1 ether);
        _settle(key, 9 ether);
        vm.warp(_now() + GRACE);
        escrow.finalizeClose(key);
        _eq(escrow.balanceOf(client), 1e23 - 9 ether);
        _solvent();
    }

    function test_settleAndClose_withASettledVoucher() public {
        (ISessionEscrowTypes.Voucher memory v, bytes memory sig) = _voucher(id, 1 ether);
        escrow.settle(key, v, sig);
        vm.prank(client);
        escrow.settleAndClose(key, v, sig);
        _eq(_status(), 2);
    }

    function test_RevertWhen_notTheClient() public {
        (ISessionEscrowTypes.Voucher memory v, bytes memory sig) = _voucher(id, 1 ether);
        bytes memory denied = abi.encodeWithSelector(ISessionEscrowErrors.NotClient.selector, client, address(this));
        vm.expectRevert(denied);
        escrow.requestClose(key);
        vm.expectRevert(denied);
        escrow.settleAndClose(key, v, sig);
    }

    function test_closeCooperative_refundsAtOnce() public {
        _settle(key, 1 ether);
        (ISessionEscrowTypes.Voucher memory v, bytes memory c, bytes[] memory n) = _cooperative(id, 3 ether);
        escrow.closeCooperative(key, v, c, n);
        _eq(_status(), 3);
        _eq(escrow.balanceOf(client), 1e23 - 3 ether);
        _solvent();
    }

    function test_closeCooperative_atTheSettledAmount() public {
        _settle(key, 3 ether);
        (ISessionEscrowTypes.Voucher memory v, bytes memory c, bytes[] memory n) = _cooperative(id, 3 ether);
        vm.prank(client);
        escrow.requestClose(key);
        escrow.closeCooperative(key, v, c, n);
        _eq(escrow.balanceOf(client), 1e23 - 3 ether);
    }

    function test_RevertWhen_somebodyDidNotAgree() public {
        _settle(key, 1 ether);
        (ISessionEscrowTypes.Voucher memory v, bytes memory c, bytes[] memory n) = _cooperative(id, 3 ether);
        bytes memory good = n[1];
        n[1] = n[0];
        vm.expectRevert(abi.encodeWithSelector(ISessionEscrowErrors.InvalidSignature.selector, nodes[1]));
        escrow.closeCooperative(key, v, c, n);
        n[1] = good;
        vm.expectRevert(abi.encodeWithSelector(ISessionEscrowErrors.InvalidSignature.selector, client));
        escrow.closeCooperative(key, v, good, n);
        vm.expectRevert(abi.encodeWithSelector(ISessionEscrowErrors.NodeSignaturesMismatch.selector, 2, 1));
        escrow.closeCooperative(key, v, c, new bytes[](1));
        // A voucher signature is no consent to close.
        (ISessionEscrowTypes.Voucher memory plain, bytes memory plainSig) = _voucher(id, 3 ether);
        vm.expectRevert(abi.encodeWithSelector(ISessionEscrowErrors.InvalidSignature.selector, client));
        escrow.closeCooperative(key, plain, plainSig, n);
        (v, c, n) = _cooperative(id, 0.5 ether);
        vm.expectRevert(abi.encodeWithSelector(ISessionEscrowErrors.StaleVoucher.selector, 0.5 ether, 1 ether));
        escrow.closeCooperative(key, v, c, n);
    }
}
