// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {IAccessControl} from "@openzeppelin/contracts/access/IAccessControl.sol";
import {IERC20Errors} from "@openzeppelin/contracts/interfaces/draft-IERC6093.sol";
import {EfedToken} from "../../contracts/EfedToken.sol";
import {StakeVault} from "../../contracts/StakeVault.sol";
import {IStakeVaultErrors, IStakeVaultTypes} from "../../contracts/interfaces/IStakeVault.sol";
import {TestBase} from "./Vm.sol";

contract StakeVaultTest is TestBase {
    uint40 internal constant PERIOD = 100;
    uint256 internal constant KEY = 0xABC;

    EfedToken internal token;
    StakeVault internal vault;
    address internal op;
    address internal accuser = address(0xACC);

    function setUp() public {
        vm.warp(1_000_000);
        op = vm.addr(KEY);
        token = new EfedToken(address(this), 1e30, address(this), 1e29);
        vault = new StakeVault(token, PERIOD, address(this));
        vault.grantRole(vault.SLASHER_ROLE(), address(this));
        token.transfer(op, 1_000);
        vm.prank(op);
        token.approve(address(vault), 1_000);
    }

    function _staked(uint256 active, uint256 unbonding) internal {
        vm.startPrank(op);
        vault.stake(active + unbonding);
        if (unbonding != 0) vault.unbond(unbonding);
        vm.stopPrank();
    }

    function _check(uint256 active, uint256 unbonding) internal view {
        IStakeVaultTypes.Stake memory s = vault.stakeOf(op);
        _eq(s.active, active);
        _eq(s.unbonding, unbonding);
        (uint128 a, uint128 u) = vault.totals();
        _eq(a, active);
        _eq(u, unbonding);
        _eq(token.balanceOf(address(vault)), active + unbonding);
    }

    // ------------------------------------------------------------------------------------------------------ stake

    function test_stake_and_topUp() public {
        _staked(100, 0);
        vm.prank(op);
        vault.stake(50);
        _check(150, 0);
    }

    function test_RevertWhen_stakingNothing() public {
        vm.expectRevert(IStakeVaultErrors.ZeroAmount.selector);
        vm.prank(op);
        vault.stake(0);
    }

    function test_RevertWhen_stakeDoesNotFitItsField() public {
        vm.expectRevert(
            abi.encodeWithSignature("SafeCastOverflowedUintDowncast(uint8,uint256)", uint8(96), uint256(1) << 96)
        );
        vault.stake(uint256(1) << 96);
    }

    function test_stakeWithPermit() public {
        vm.prank(op);
        token.approve(address(vault), 0);
        (uint8 v, bytes32 r, bytes32 s) = _permit(700, _now() + 1);
        vm.prank(op);
        vault.stakeWithPermit(700, _now() + 1, v, r, s);
        _check(700, 0);
    }

    function test_permit_frontRunDoesNotBlock() public {
        vm.prank(op);
        token.approve(address(vault), 0);
        uint256 deadline = _now() + 1;
        (uint8 v, bytes32 r, bytes32 s) = _permit(700, deadline);
        token.permit(op, address(vault), 700, deadline, v, r, s);
        vm.prank(op);
        vault.stakeWithPermit(700, deadline, v, r, s);
        _check(700, 0);
    }

    function test_RevertWhen_permitIsWrongAndNothingAllowed() public {
        vm.prank(op);
        token.approve(address(vault), 0);
        (uint8 v, bytes32 r, bytes32 s) = _permit(1, _now() + 1);
        uint256 deadline = _now() + 1;
        vm.expectRevert(
            abi.encodeWithSelector(IERC20Errors.ERC20InsufficientAllowance.selector, address(vault), 0, 700)
        );
        vm.prank(op);
        vault.stakeWithPermit(700, deadline, v, r, s);
    }

    function test_griefing_thirdPartyCannotTouchMyState() public {
        token.approve(address(vault), 10);
        vm.expectRevert(abi.encodeWithSelector(IStakeVaultErrors.SponsorNotAllowed.selector, op, address(this)));
        vault.stakeFor(op, 10);
        vm.prank(op);
        vault.setSponsor(address(this), true);
        _true(vault.isSponsor(op, address(this)), "sponsor");
        vault.stakeFor(op, 10);
        _check(10, 0);
        vm.prank(op);
        vault.setSponsor(address(this), false);
        vm.expectRevert(abi.encodeWithSelector(IStakeVaultErrors.SponsorNotAllowed.selector, op, address(this)));
        vault.stakeFor(op, 10);
    }

    // ----------------------------------------------------------------------------------------------------- unbond

    function test_unbond_then_withdraw() public {
        _staked(60, 40);
        _check(60, 40);
        _eq(vault.stakeOf(op).readyAt, _now() + PERIOD);
        vm.warp(_now() + PERIOD);
        vm.prank(op);
        vault.withdraw();
        _check(60, 0);
        _eq(token.balanceOf(op), 940);
    }

    function test_unbond_mergesAndRestartsTheClock() public {
        _staked(60, 40);
        vm.warp(_now() + PERIOD - 1);
        vm.prank(op);
        vault.unbond(10);
        _check(50, 50);
        uint256 ready = _now() + PERIOD;
        vm.warp(_now() + 1);
        vm.expectRevert(abi.encodeWithSelector(IStakeVaultErrors.NotReady.selector, ready));
        vm.prank(op);
        vault.withdraw();
    }

    function test_cancelUnbond() public {
        _staked(60, 40);
        vm.prank(op);
        vault.cancelUnbond();
        _check(100, 0);
        _eq(vault.stakeOf(op).readyAt, 0);
        vm.expectRevert(IStakeVaultErrors.ZeroAmount.selector);
        vm.prank(op);
        vault.cancelUnbond();
    }

    function test_RevertWhen_unbondingMoreThanActive() public {
        _staked(60, 40);
        vm.expectRevert(abi.encodeWithSelector(IStakeVaultErrors.InsufficientStake.selector, 61, 60));
        vm.prank(op);
        vault.unbond(61);
    }

    function test_RevertWhen_unbondingOrWithdrawingNothing() public {
        _staked(60, 0);
        vm.startPrank(op);
        vm.expectRevert(IStakeVaultErrors.ZeroAmount.selector);
        vault.unbond(0);
        vm.expectRevert(IStakeVaultErrors.ZeroAmount.selector);
        vault.withdraw();
        vm.stopPrank();
    }

    function test_slash_cannotBeEscapedByExit() public {
        _staked(0, 100);
        vm.warp(_now() + PERIOD - 1);
        vm.expectRevert(abi.encodeWithSelector(IStakeVaultErrors.NotReady.selector, _now() + 1));
        vm.prank(op);
        vault.withdraw();
        vault.slash(op, 100, address(0), 0, "late");
        _check(0, 0);
    }

    function test_RevertWhen_periodOutOfBounds() public {
        vm.expectRevert(abi.encodeWithSelector(IStakeVaultErrors.UnbondingPeriodOutOfBounds.selector, 0, 1, 365 days));
        new StakeVault(token, 0, address(this));
        vm.expectRevert(
            abi.encodeWithSelector(IStakeVaultErrors.UnbondingPeriodOutOfBounds.selector, 365 days + 1, 1, 365 days)
        );
        new StakeVault(token, 365 days + 1, address(this));
    }

    // ------------------------------------------------------------------------------------------------------ slash

    function test_slash_reachesUnbonding() public {
        _staked(60, 40);
        (uint256 slashed, uint256 reward) = vault.slash(op, 50, accuser, 3_000, "case");
        _eq(slashed, 50);
        _eq(reward, 15);
        _check(30, 20);
        _eq(token.balanceOf(accuser), 15);
        _eq(token.totalSupply(), 1e29 - 35);
    }

    function test_slash_neverReverts_andClamps() public {
        _staked(60, 40);
        (uint256 slashed,) = vault.slash(op, type(uint256).max, address(0), 5_000, "case");
        _eq(slashed, 100);
        _check(0, 0);
        (slashed,) = vault.slash(op, type(uint256).max, accuser, 5_000, "again");
        _eq(slashed, 0);
        (slashed,) = vault.slash(address(0xDEAD), 1, accuser, 5_000, "nobody");
        _eq(slashed, 0);
    }

    function test_slash_neverPaysTheVaultItself() public {
        _staked(60, 40);
        (, uint256 reward) = vault.slash(op, 50, address(vault), 5_000, "case");
        _eq(reward, 0);
        _check(30, 20);
    }

    function test_dispute_selfDealingDoesNotPay() public {
        _staked(100, 0);
        (uint256 slashed, uint256 reward) = vault.slash(op, 100, op, 5_000, "self");
        _atMost(reward, slashed / 2);
        vm.expectRevert(abi.encodeWithSelector(IStakeVaultErrors.RewardCutTooHigh.selector, 5_001, 5_000));
        vault.slash(op, 1, op, 5_001, "self");
    }

    function testFuzz_slash_clampsAndSums(uint96 active, uint96 unbonding, uint256 amount, uint256 bps) public {
        active = uint96(_bound(active, 0, 1e28));
        unbonding = uint96(_bound(unbonding, active == 0 ? 1 : 0, 1e28));
        bps = _bound(bps, 0, 5_000);
        token.transfer(op, uint256(active) + unbonding);
        vm.prank(op);
        token.approve(address(vault), type(uint256).max);
        _staked(active, unbonding);
        uint256 supply = token.totalSupply();
        uint256 total = uint256(active) + unbonding;
        uint256 expected = amount < total ? amount : total;
        (uint256 slashed, uint256 reward) = vault.slash(op, amount, accuser, bps, "fuzz");
        IStakeVaultTypes.Stake memory s = vault.stakeOf(op);
        _eq(slashed, expected);
        _atMost(reward, slashed / 2);
        _eq(uint256(s.active) + s.unbonding, total - slashed);
        _eq(token.balanceOf(accuser), reward);
        _eq(supply - token.totalSupply(), slashed - reward);
        _check(s.active, s.unbonding);
        // Pro rata, rounded against who is leaving.
        _true((unbonding - s.unbonding) * total >= slashed * unbonding, "unbonding share rounds up");
        _true((unbonding - s.unbonding) * total < slashed * unbonding + total, "by less than a wei");
    }

    /// forge-config: default.fuzz.runs = 24
    function testFuzz_slash_reachesAllWhenRepeated(uint96 active, uint8 times) public {
        active = uint96(_bound(active, 1, 1_000));
        _staked(active, 0);
        uint256 left = active;
        for (uint256 i; i < times; ++i) {
            (uint256 slashed,) = vault.slash(op, 7, address(0), 0, "again");
            left -= slashed;
        }
        _check(left, 0);
    }

    function test_RevertWhen_notSlasher() public {
        bytes32 role = vault.SLASHER_ROLE();
        bytes memory denied = abi.encodeWithSelector(IAccessControl.AccessControlUnauthorizedAccount.selector, op, role);
        vm.startPrank(op);
        vm.expectRevert(denied);
        vault.slash(op, 1, op, 0, "x");
        vm.expectRevert(denied);
        vault.lock(op);
        vm.expectRevert(denied);
        vault.unlock(op);
        vm.expectRevert(denied);
        vault.jail(op, 1);
        vm.stopPrank();
    }

    // --------------------------------------------------------------------------------------------- locks and jail

    function test_lock_holdsWithdrawalsUntilEveryCaseIsReleased() public {
        _staked(60, 40);
        vault.lock(op);
        vault.lock(op);
        vm.warp(_now() + PERIOD);
        vm.expectRevert(abi.encodeWithSelector(IStakeVaultErrors.StakeLocked.selector, 2));
        vm.prank(op);
        vault.withdraw();
        vault.unlock(op);
        vault.unlock(op);
        vm.prank(op);
        vault.withdraw();
        _check(60, 0);
        vm.expectRevert(abi.encodeWithSelector(IStakeVaultErrors.NotLocked.selector, op));
        vault.unlock(op);
    }

    function test_jail_neverShortens() public {
        _eq(vault.stakeOf(op).flags, 0);
        vault.jail(op, 500);
        vault.jail(op, 400);
        _eq(vault.jailedUntil(op), 500);
        _eq(vault.stakeOf(op).flags, 1);
    }

    function testFuzz_unbonding_neverExceedsTotal(uint96[8] memory amounts, uint96[8] memory slashes) public {
        _staked(1_000, 0);
        for (uint256 i; i < 8; ++i) {
            uint256 active = vault.stakeOf(op).active;
            if (active != 0) {
                uint256 x = _bound(amounts[i], 1, active);
                vm.prank(op);
                vault.unbond(x);
            }
            vault.slash(op, _bound(slashes[i], 0, 200), address(0), 0, "s");
        }
        IStakeVaultTypes.Stake memory s = vault.stakeOf(op);
        _check(s.active, s.unbonding);
        if (s.unbonding == 0) return;
        vm.warp(_now() + PERIOD);
        vm.prank(op);
        vault.withdraw();
        _check(s.active, 0);
    }

    function _now() private view returns (uint256) {
        return vm.getBlockTimestamp();
    }

    function _permit(uint256 amount, uint256 deadline) private view returns (uint8, bytes32, bytes32) {
        bytes32 inner = keccak256(
            abi.encode(
                keccak256("Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)"),
                op,
                address(vault),
                amount,
                token.nonces(op),
                deadline
            )
        );
        return vm.sign(KEY, keccak256(abi.encodePacked("\x19\x01", token.DOMAIN_SEPARATOR(), inner)));
    }
}
