// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {IVerifierCommitteeErrors} from "../../contracts/interfaces/IVerifierCommittee.sol";
import {ISessionEscrowTypes} from "../../contracts/interfaces/ISessionEscrow.sol";
import {Fixture} from "./Fixture.sol";

/// @notice Whole epochs, from the session to the pay-out, with every token accounted for.
contract EpochFlowTest is Fixture {
    address internal fraud;
    address[] internal all;

    function setUp() public override {
        super.setUp();
        // A third node that serves the second half, and cheats.
        fraud = vm.addr(_nodeKey(2));
        _stake(fraud, NODE_STAKE);
        _register(fraud, 2, 4);
        all = nodes;
        all.push(fraud);
    }

    function test_honestEpoch_paysEverybody() public {
        _at(2, 0);
        ISessionEscrowTypes.SessionKey memory key = _key(1);
        _open(key, 10 ether);
        _settle(key, 8 ether);
        for (uint256 i; i < 2; ++i) {
            vm.prank(nodes[i]);
            batches.post(2, 0, keccak256(abi.encode(i)), 3);
        }
        _fixSeed(2);
        Report[] memory r = _reports(2, nodes, _verdict(10, 0, false));
        _submit(2, r);
        committee.finalize(2, nodes);
        for (uint256 i; i < r.length; ++i) {
            committee.judgeVerifier(2, r[i].verifier, r[i].nodes);
        }
        pool.weigh(2, nodes);
        vm.prank(client);
        escrow.requestClose(key);
        _at(4, 1);
        escrow.finalizeClose(key);
        _payOut(r);
        // 8 paid: 0.24 burned, 7.76 to the nodes; 8 minted, 5.6 + 1.6 + 0.8.
        _eq(escrow.balanceOf(client), 1e23 - 8 ether);
        _eq(token.balanceOf(address(escrow)), 1e23 - 8 ether);
        uint256 earned = token.balanceOf(nodes[0]) + token.balanceOf(nodes[1]);
        _true(earned <= 7.76 ether + 5.6 ether && earned + 2 >= 7.76 ether + 5.6 ether, "nodes");
        _eq(token.balanceOf(TREASURY), 0.8 ether);
    }

    function _payOut(Report[] memory r) private {
        uint256 verified;
        for (uint256 i; i < 2; ++i) {
            vm.startPrank(nodes[i]);
            escrow.withdrawFees(nodes[i]);
            pool.claim(_one(uint64(2)));
            vm.stopPrank();
        }
        for (uint256 i; i < r.length; ++i) {
            vm.prank(r[i].verifier);
            pool.claimVerifier(_one(uint64(2)));
            verified += token.balanceOf(r[i].verifier);
        }
        _true(verified <= 1.6 ether && verified + r.length >= 1.6 ether, "verifiers");
        pool.claimTreasury(_one(uint64(2)));
        escrow.sweepProtocolFees();
    }

    function test_cheater_isSlashedExcludedAndUnpaid_othersAreNot() public {
        _at(2, 0);
        ISessionEscrowTypes.SessionKey memory key = _key(1);
        key.nodes[1] = fraud;
        _open(key, 10 ether);
        _settle(key, 8 ether);
        uint256 supply = token.totalSupply();
        _fixSeed(2);
        Report[] memory r = _mixedReports();
        _submit(2, r);
        committee.finalize(2, all);
        _eq(vault.stakeOf(fraud).active, 80 ether);
        _eq(supply - token.totalSupply(), 20 ether);
        _eq(vault.stakeOf(nodes[0]).active, NODE_STAKE);
        _eq(committee.standingOf(fraud), 0);
        _eq(committee.standingOf(nodes[0]), 2);
        for (uint256 i; i < r.length; ++i) {
            committee.judgeVerifier(2, r[i].verifier, r[i].nodes);
            _true(committee.pointsOf(2, r[i].verifier) != 0, "honest verifiers earn");
        }
        pool.weigh(2, all);
        _eq(pool.weightOf(2, fraud), 0);
        _at(4, 0);
        _eq(pool.claimable(2, fraud), 0);
        _eq(pool.claimable(2, nodes[0]), 5.6 ether);
        _cannotServe();
    }

    /// @dev Passes for the honest nodes, severe failures for the cheat.
    function _mixedReports() private view returns (Report[] memory r) {
        r = _reports(2, all, _verdict(10, 0, false));
        for (uint256 i; i < r.length; ++i) {
            for (uint256 j; j < r[i].nodes.length; ++j) {
                if (r[i].nodes[j] == fraud) r[i].verdicts[j] = _verdict(0, 10, true);
            }
        }
    }

    function _cannotServe() private {
        ISessionEscrowTypes.SessionKey memory key = _key(2);
        key.nodes[1] = fraud;
        key.expiry = uint40(_now() + 100 * EPOCH);
        vm.expectRevert(abi.encodeWithSignature("NodeJailed(address,uint256)", fraud, committee.epochStart(22)));
        vm.prank(client);
        escrow.open(key, 1 ether);
        // Out of jail after twenty epochs, and on probation until trust is back.
        _at(22, 0);
        _eq(committee.standingOf(fraud), 1);
        key.expiry = uint40(_now() + 1);
        uint256 cap = 8 ether;
        vm.expectRevert(
            abi.encodeWithSelector(IVerifierCommitteeErrors.ProbationCapExceeded.selector, fraud, cap, cap + 1)
        );
        vm.prank(client);
        escrow.open(key, cap + 1);
        _open(key, cap);
    }
}
