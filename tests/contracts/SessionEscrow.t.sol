// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {IAccessControl} from "@openzeppelin/contracts/access/IAccessControl.sol";
import {IERC20Errors} from "@openzeppelin/contracts/interfaces/draft-IERC6093.sol";
import {SessionEscrow} from "../../contracts/SessionEscrow.sol";
import {INodeRegistryErrors} from "../../contracts/interfaces/INodeRegistry.sol";
import {ISessionEscrowErrors, ISessionEscrowTypes} from "../../contracts/interfaces/ISessionEscrow.sol";
import {IVerifierCommitteeErrors} from "../../contracts/interfaces/IVerifierCommittee.sol";
import {EscrowFixture} from "./EscrowFixture.sol";

contract EscrowBalanceTest is EscrowFixture {
    function test_deposit_and_withdraw() public {
        vm.startPrank(client);
        escrow.withdraw(1e22);
        _eq(escrow.balanceOf(client), 9e22);
        vm.expectRevert(abi.encodeWithSelector(ISessionEscrowErrors.InsufficientBalance.selector, 9e22 + 1, 9e22));
        escrow.withdraw(9e22 + 1);
        vm.expectRevert(ISessionEscrowErrors.ZeroAmount.selector);
        escrow.withdraw(0);
        vm.expectRevert(ISessionEscrowErrors.ZeroAmount.selector);
        escrow.deposit(0);
        vm.stopPrank();
        _solvent();
    }

    function test_depositFor_creditsTheClient() public {
        token.approve(address(escrow), 5);
        escrow.depositFor(client, 5);
        _eq(escrow.balanceOf(client), 1e23 + 5);
        _eq(escrow.balanceOf(address(this)), 0);
    }

    function test_permit_frontRunDoesNotBlock() public {
        vm.prank(client);
        token.approve(address(escrow), 0);
        uint256 deadline = _now() + 1;
        bytes32 inner = keccak256(
            abi.encode(
                keccak256("Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)"),
                client,
                address(escrow),
                uint256(7),
                token.nonces(client),
                deadline
            )
        );
        (uint8 v, bytes32 r, bytes32 s) =
            vm.sign(CLIENT_KEY, keccak256(abi.encodePacked("\x19\x01", token.DOMAIN_SEPARATOR(), inner)));
        token.permit(client, address(escrow), 7, deadline, v, r, s);
        vm.startPrank(client);
        escrow.depositWithPermit(7, deadline, v, r, s);
        _eq(escrow.balanceOf(client), 1e23 + 7);
        vm.expectRevert(abi.encodeWithSelector(IERC20Errors.ERC20InsufficientAllowance.selector, address(escrow), 0, 7));
        escrow.depositWithPermit(7, deadline, v, r, s);
        vm.stopPrank();
    }
}

contract EscrowOpenTest is EscrowFixture {
    function _rejects(ISessionEscrowTypes.SessionKey memory k, uint256 amount, bytes memory error_) internal {
        vm.expectRevert(error_);
        vm.prank(client);
        escrow.open(k, amount);
    }

    function test_open_locksTheAmount() public {
        id = _open(key, 5 ether);
        ISessionEscrowTypes.Session memory s = escrow.sessionOf(id);
        _eq(s.deposit, 5 ether);
        _eq(s.settled, 0);
        _eq(s.feeBps, FEE_BPS);
        _eq(s.status, 1);
        _eq(escrow.balanceOf(client), 1e23 - 5 ether);
        _eq32(id, keccak256(abi.encode(block.chainid, address(escrow), key)));
        _solvent();
    }

    function test_RevertWhen_openedTwice_evenAfterTheClose() public {
        id = _open(key, 1 ether);
        bytes memory exists = abi.encodeWithSelector(ISessionEscrowErrors.SessionExists.selector, id);
        _rejects(key, 1 ether, exists);
        vm.prank(client);
        escrow.requestClose(key);
        vm.warp(_now() + GRACE);
        escrow.finalizeClose(key);
        _rejects(key, 1 ether, exists);
    }

    function test_RevertWhen_openedBadly() public {
        _rejects(key, 0, abi.encodeWithSelector(ISessionEscrowErrors.ZeroAmount.selector));
        _rejects(
            key,
            1e24,
            abi.encodeWithSelector(IVerifierCommitteeErrors.ProbationCapExceeded.selector, nodes[0], 10 ether, 1e24)
        );
        ISessionEscrowTypes.SessionKey memory k = _key(2);
        k.client = address(this);
        _rejects(k, 1, abi.encodeWithSelector(ISessionEscrowErrors.NotClient.selector, address(this), client));
        k = _key(2);
        k.expiry = uint40(_now());
        _rejects(k, 1, abi.encodeWithSelector(ISessionEscrowErrors.SessionExpired.selector, _now(), _now()));
        k = _key(2);
        k.maxPricePerKTok = 1_999;
        _rejects(k, 1, abi.encodeWithSelector(ISessionEscrowErrors.RouteTooExpensive.selector, 2_000, 1_999));
        k = _key(2);
        k.shares[0] = 3_334;
        _rejects(k, 1, abi.encodeWithSelector(ISessionEscrowErrors.SharesSumMismatch.selector, 10_001));
        k.shares = new uint16[](1);
        k.shares[0] = 10_000;
        _rejects(k, 1, abi.encodeWithSelector(ISessionEscrowErrors.SharesLengthMismatch.selector, 2, 1));
        k = _key(2);
        k.nodes[1] = nodes[0];
        _rejects(k, 1, abi.encodeWithSelector(INodeRegistryErrors.RouteGap.selector, 1, 2, 0));
    }

    function test_RevertWhen_theBalanceIsTooSmall() public {
        vm.prank(client);
        escrow.withdraw(1e23 - 1);
        _rejects(key, 2, abi.encodeWithSelector(ISessionEscrowErrors.InsufficientBalance.selector, 2, 1));
    }

    function test_probation_capsWhatASessionHolds() public {
        bytes memory capped = abi.encodeWithSelector(
            IVerifierCommitteeErrors.ProbationCapExceeded.selector, nodes[0], 10 ether, 10 ether + 1
        );
        _rejects(key, 10 ether + 1, capped);
        id = _open(key, 10 ether);
        vm.expectRevert(capped);
        vm.prank(client);
        escrow.topUp(key, 1);
        _trusted(2);
        vm.prank(client);
        escrow.topUp(key, 90 ether);
        _eq(escrow.sessionOf(id).deposit, 100 ether);
    }

    function test_RevertWhen_aNodeIsExcluded() public {
        _judge(2, _one(nodes[1]), _verdict(0, 1, false));
        key.expiry = uint40(_now() + 100);
        _rejects(key, 1, abi.encodeWithSelector(IVerifierCommitteeErrors.NodeExcluded.selector, nodes[1], 22));
    }

    function test_openWithSig_byARelayer() public {
        id = escrow.sessionIdOf(key);
        uint256 deadline = _now();
        bytes memory sig = _sign(CLIENT_KEY, escrow.openDigest(id, 5, deadline));
        vm.expectRevert(abi.encodeWithSelector(ISessionEscrowErrors.InvalidSignature.selector, client));
        escrow.openWithSig(key, 6, deadline, sig);
        _eq32(escrow.openWithSig(key, 5, deadline, sig), id);
        vm.expectRevert(abi.encodeWithSelector(ISessionEscrowErrors.SessionExists.selector, id));
        escrow.openWithSig(key, 5, deadline, sig);
        vm.warp(deadline + 1);
        vm.expectRevert(abi.encodeWithSelector(ISessionEscrowErrors.DeadlinePassed.selector, deadline, deadline + 1));
        escrow.openWithSig(key, 5, deadline, sig);
    }

    function test_topUp() public {
        id = _open(key, 1 ether);
        vm.prank(client);
        escrow.topUp(key, 2 ether);
        _eq(escrow.sessionOf(id).deposit, 3 ether);
        vm.expectRevert(abi.encodeWithSelector(ISessionEscrowErrors.NotClient.selector, client, address(this)));
        escrow.topUp(key, 1);
        vm.startPrank(client);
        vm.expectRevert(ISessionEscrowErrors.ZeroAmount.selector);
        escrow.topUp(key, 0);
        vm.warp(key.expiry);
        vm.expectRevert(abi.encodeWithSelector(ISessionEscrowErrors.SessionExpired.selector, key.expiry, key.expiry));
        escrow.topUp(key, 1);
        escrow.requestClose(key);
        _wrongStatus(2);
        escrow.topUp(key, 1);
        vm.stopPrank();
        _solvent();
    }

    function test_params_notRetroactive_feeIsTakenFromTheOpening() public {
        id = _open(key, 1 ether);
        escrow.setFeeBps(2_000);
        _eq(escrow.feeBps(), FEE_BPS);
        _at(2, 0);
        _eq(escrow.feeBps(), 2_000);
        _settle(key, 1 ether);
        _eq(escrow.protocolFees(), 0.03 ether);
        ISessionEscrowTypes.SessionKey memory later = _key(2);
        bytes32 laterId = _open(later, 1 ether);
        _eq(escrow.sessionOf(laterId).feeBps, 2_000);
    }

    function test_RevertWhen_theFeeIsTooHighOrTheAdminSomebodyElse() public {
        vm.expectRevert(abi.encodeWithSelector(ISessionEscrowErrors.FeeTooHigh.selector, 2_001, 2_000));
        escrow.setFeeBps(2_001);
        vm.expectRevert(
            abi.encodeWithSelector(IAccessControl.AccessControlUnauthorizedAccount.selector, client, bytes32(0))
        );
        vm.prank(client);
        escrow.setFeeBps(1);
        vm.expectRevert(abi.encodeWithSelector(ISessionEscrowErrors.GraceOutOfBounds.selector, 0, 1, 30 days));
        new SessionEscrow(token, registry, committee, GENESIS, EPOCH, 0, 0, address(this));
    }
}
