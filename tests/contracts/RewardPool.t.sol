// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {EfedToken} from "../../contracts/EfedToken.sol";
import {RewardPool} from "../../contracts/RewardPool.sol";
import {IRewardPoolErrors, IRewardPoolTypes} from "../../contracts/interfaces/IRewardPool.sol";
import {ISessionEscrowTypes} from "../../contracts/interfaces/ISessionEscrow.sol";
import {Fixture} from "./Fixture.sol";

abstract contract RewardFixture is Fixture {
    ISessionEscrowTypes.SessionKey internal key;

    function setUp() public override {
        super.setUp();
        _at(2, 0);
        key = _key(1);
        _open(key, 10 ether);
    }

    /// @dev Epoch 2: `paid` settled, both nodes audited with `verdict`, weighed; ends in the tally phase of epoch 3.
    function _work(uint256 paid, uint16 verdict) internal {
        _settle(key, paid);
        _judge(2, nodes, verdict);
        pool.weigh(2, nodes);
    }
}

contract RewardPoolTest is RewardFixture {
    function test_weigh_isWorkTimesTrust() public {
        _work(10 ether, _verdict(10, 0, false));
        uint256 sum;
        for (uint256 i; i < 2; ++i) {
            uint256 expected = escrow.workOf(2, nodes[i]) * 333_333 / 1e6 / 1e9 * 1e9;
            _eq(pool.weightOf(2, nodes[i]), expected);
            sum += expected;
        }
        _eq(pool.totalWeight(2), sum);
        pool.weigh(2, nodes);
        _eq(pool.totalWeight(2), sum);
    }

    function test_weigh_isNothingBelowTheta() public {
        _work(10 ether, _verdict(1, 0, false));
        _eq(pool.totalWeight(2), 0);
        _at(4, 0);
        _eq(pool.claimable(2, nodes[0]), 0);
        vm.expectRevert(abi.encodeWithSelector(IRewardPoolErrors.NothingToClaim.selector, nodes[0]));
        vm.prank(nodes[0]);
        pool.claim(_one(uint64(2)));
    }

    function test_RevertWhen_weighedOutOfPhaseOrBeforeTheVerdict() public {
        _settle(key, 1 ether);
        vm.expectRevert(abi.encodeWithSelector(IRewardPoolErrors.NotWeighable.selector, 2, 2, 0));
        pool.weigh(2, nodes);
        _fixSeed(2);
        _submit(2, _reports(2, nodes, _verdict(10, 0, false)));
        vm.expectRevert(abi.encodeWithSelector(IRewardPoolErrors.NotFinalized.selector, 2, nodes[0]));
        pool.weigh(2, nodes);
        committee.finalize(2, nodes);
        _at(4, 2);
        vm.expectRevert(abi.encodeWithSelector(IRewardPoolErrors.NotWeighable.selector, 2, 4, 2));
        pool.weigh(2, nodes);
        _at(3, 2);
        pool.weigh(2, nodes);
    }

    function test_weigh_isCappedByTheStake() public {
        vm.startPrank(nodes[0]);
        vault.unbond(NODE_STAKE - 1 ether);
        vm.stopPrank();
        _work(10 ether, _verdict(255, 0, false));
        _eq(pool.weightOf(2, nodes[0]), 1 ether);
    }

    function test_claim_sharesTheServersPart() public {
        _work(10 ether, _verdict(10, 0, false));
        _eq(pool.emissionOf(2), 10 ether);
        uint256 w0 = pool.weightOf(2, nodes[0]);
        uint256 expected = 7 ether * w0 / pool.totalWeight(2);
        vm.expectRevert(abi.encodeWithSelector(IRewardPoolErrors.NotClaimable.selector, 2, 3));
        vm.prank(nodes[0]);
        pool.claim(_one(uint64(2)));
        _eq(pool.claimable(2, nodes[0]), 0);
        _at(4, 0);
        _eq(pool.claimable(2, nodes[0]), expected);
        uint256 before = token.balanceOf(nodes[0]);
        vm.prank(nodes[0]);
        pool.claim(_one(uint64(2)));
        _eq(token.balanceOf(nodes[0]) - before, expected);
        _eq(pool.weightOf(2, nodes[0]), w0);
        vm.prank(nodes[1]);
        pool.claim(_one(uint64(2)));
    }

    function test_noDoubleClaim() public {
        _work(10 ether, _verdict(10, 0, false));
        address v = seats.drawn(2, nodes[0])[0];
        Report memory r = _report(2, v, nodes, _verdict(10, 0, false));
        committee.judgeVerifier(2, v, r.nodes);
        _at(4, 0);
        uint64[] memory twice = new uint64[](2);
        (twice[0], twice[1]) = (2, 2);
        uint256 expected = pool.claimable(2, nodes[0]);
        vm.startPrank(nodes[0]);
        pool.claim(twice);
        vm.expectRevert(abi.encodeWithSelector(IRewardPoolErrors.NothingToClaim.selector, nodes[0]));
        pool.claim(_one(uint64(2)));
        vm.stopPrank();
        _eq(token.balanceOf(nodes[0]), expected);
        _eq(pool.claimable(2, nodes[0]), 0);
        vm.startPrank(v);
        pool.claimVerifier(twice);
        vm.expectRevert(abi.encodeWithSelector(IRewardPoolErrors.NothingToClaim.selector, v));
        pool.claimVerifier(twice);
        vm.stopPrank();
        _eq(token.balanceOf(v), 2 ether);
        pool.claimTreasury(twice);
        _eq(token.balanceOf(TREASURY), 1 ether);
        vm.expectRevert(abi.encodeWithSelector(IRewardPoolErrors.NothingToClaim.selector, TREASURY));
        pool.claimTreasury(_one(uint64(2)));
    }

    function test_claims_sumToAtMostTheEmission() public {
        _work(10 ether, _verdict(10, 0, false));
        Report[] memory r = _reports(2, nodes, _verdict(10, 0, false));
        for (uint256 i; i < r.length; ++i) {
            committee.judgeVerifier(2, r[i].verifier, r[i].nodes);
        }
        _at(4, 0);
        uint256 supply = token.totalSupply();
        for (uint256 i; i < 2; ++i) {
            vm.prank(nodes[i]);
            pool.claim(_one(uint64(2)));
        }
        for (uint256 i; i < r.length; ++i) {
            vm.prank(r[i].verifier);
            pool.claimVerifier(_one(uint64(2)));
        }
        pool.claimTreasury(_one(uint64(2)));
        uint256 minted = token.totalSupply() - supply;
        _atMost(minted, 10 ether);
        _true(minted + r.length + 2 >= 10 ether, "only dust is missing");
    }

    function test_claim_severalEpochsThatShareASlot() public {
        // Epochs 4..7 lie in one group of lanes.
        for (uint64 e = 4; e < 8; ++e) {
            _at(e, 0);
            _settle(key, (e - 3) * 1 ether);
            _judge(e, nodes, _verdict(10, 0, false));
            pool.weigh(e, nodes);
        }
        _at(9, 0);
        uint64[] memory epochs = new uint64[](4);
        uint256 sum;
        for (uint64 i; i < 4; ++i) {
            epochs[i] = 7 - i;
            sum += pool.claimable(7 - i, nodes[0]);
            _true(pool.weightOf(4 + i, nodes[0]) != 0, "weighed");
        }
        vm.startPrank(nodes[0]);
        pool.claim(_one(uint64(6)));
        pool.claim(epochs);
        vm.stopPrank();
        _eq(token.balanceOf(nodes[0]), sum);
    }

    function test_emission_isScheduledAndBoundedByVolume() public {
        _eq(pool.emissionOf(0), 0);
        _eq(pool.emissionOf(2), 0);
        _settle(key, 3 ether);
        _eq(pool.emissionOf(2), 3 ether);
    }

    function testFuzz_emission_halves(uint64 e) public {
        // A pool whose schedule binds instead of the volume.
        IRewardPoolTypes.Params memory p = _poolParams();
        (p.e0, p.halvingEpochs) = (1_000, 1);
        RewardPool small = _pool(p);
        _settle(key, 3 ether);
        _eq(small.emissionOf(2), 500);
        _eq(small.emissionOf(uint64(_bound(e, 3, type(uint64).max))), 0);
    }

    function test_claim_nearTheCapGetsWhatIsLeft() public {
        _work(10 ether, _verdict(10, 0, false));
        _at(4, 0);
        token.grantRole(token.MINTER_ROLE(), address(this));
        token.mint(address(this), CAP - token.totalSupply() - 0.4 ether);
        _eq(pool.emissionOf(2), 0.4 ether);
        pool.claimTreasury(_one(uint64(2)));
        _eq(token.balanceOf(TREASURY), 0.4 ether);
        vm.expectRevert(abi.encodeWithSelector(IRewardPoolErrors.NothingToClaim.selector, nodes[0]));
        vm.prank(nodes[0]);
        pool.claim(_one(uint64(2)));
        // Burned fees make room again, and the claim was not lost.
        escrow.sweepProtocolFees();
        vm.prank(nodes[0]);
        pool.claim(_one(uint64(2)));
        _eq(token.balanceOf(nodes[0]), 0.3 ether);
    }

    function test_rewards_notRetroactive() public {
        // Whoever had no work in the epoch gets nothing for it, whatever it stakes later.
        _work(10 ether, _verdict(10, 0, false));
        address late = address(0x1A7E);
        _stake(late, 1e24);
        _register(late, 0, 4);
        pool.weigh(2, _one(late));
        _eq(pool.weightOf(2, late), 0);
        _at(4, 0);
        _eq(pool.claimable(2, late), 0);
    }

    function _pool(IRewardPoolTypes.Params memory p) internal returns (RewardPool) {
        return new RewardPool(token, committee, escrow, vault, GENESIS, EPOCH, p, TREASURY);
    }

    function _rejects(IRewardPoolTypes.Params memory p, bytes32 name, uint256 v, uint256 min, uint256 max) internal {
        vm.expectRevert(abi.encodeWithSelector(IRewardPoolErrors.ParamOutOfBounds.selector, name, v, min, max));
        _pool(p);
    }

    function test_RevertWhen_aParameterIsOutOfBounds() public {
        IRewardPoolTypes.Params memory p = _poolParams();
        p.halvingEpochs = 0;
        _rejects(p, "halvingEpochs", 0, 1, type(uint32).max);
        p = _poolParams();
        p.phiBps = 10_001;
        _rejects(p, "phiBps", 10_001, 0, 10_000);
        p = _poolParams();
        p.serversBps = 10_001;
        _rejects(p, "serversBps", 10_001, 0, 10_000);
        p = _poolParams();
        p.verifiersBps = 3_001;
        _rejects(p, "verifiersBps", 3_001, 0, 3_000);
        p = _poolParams();
        p.stakeCapBps = 0;
        _rejects(p, "stakeCapBps", 0, 1, type(uint16).max);
        vm.expectRevert(IRewardPoolErrors.InvalidTreasury.selector);
        new RewardPool(token, committee, escrow, vault, GENESIS, EPOCH, _poolParams(), address(0));
    }
}

/// @notice A circle that is client, nodes, verifiers and treasury at once pays itself.
contract WashTradingTest is RewardFixture {
    function _poolParams() internal pure override returns (IRewardPoolTypes.Params memory p) {
        p = super._poolParams();
        // The condition under which self-payment loses: at most the burned fee is minted.
        p.phiBps = FEE_BPS;
    }

    /// forge-config: default.fuzz.runs = 64
    function testFuzz_washTrading_isUnprofitable(uint256 paid, uint8 units) public {
        paid = _bound(paid, 1, 10 ether);
        uint256 supply = token.totalSupply();
        _work(paid, _verdict(units, 0, false));
        Report[] memory r = _reports(2, nodes, _verdict(units, 0, false));
        for (uint256 i; i < r.length; ++i) {
            committee.judgeVerifier(2, r[i].verifier, r[i].nodes);
        }
        _at(4, 0);
        _claimAll(r);
        if (escrow.protocolFees() != 0) escrow.sweepProtocolFees();
        // Everything the circle holds changes by what was minted minus what was burned.
        _atMost(token.totalSupply(), supply);
    }

    function _claimAll(Report[] memory r) private {
        for (uint256 i; i < 2; ++i) {
            if (pool.claimable(2, nodes[i]) == 0) continue;
            vm.prank(nodes[i]);
            pool.claim(_one(uint64(2)));
        }
        for (uint256 i; i < r.length; ++i) {
            if (pool.claimable(2, r[i].verifier) == 0) continue;
            vm.prank(r[i].verifier);
            pool.claimVerifier(_one(uint64(2)));
        }
        if (pool.claimable(2, TREASURY) != 0) pool.claimTreasury(_one(uint64(2)));
    }
}
