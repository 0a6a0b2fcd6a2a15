// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {ICommitmentLogEvents} from "../../contracts/interfaces/ICommitmentLog.sol";
import {INodeRegistryEvents} from "../../contracts/interfaces/INodeRegistry.sol";
import {IRewardPoolEvents} from "../../contracts/interfaces/IRewardPool.sol";
import {ISessionEscrowEvents, ISessionEscrowTypes} from "../../contracts/interfaces/ISessionEscrow.sol";
import {IStakeVaultEvents} from "../../contracts/interfaces/IStakeVault.sol";
import {IVerifierCommitteeEvents} from "../../contracts/interfaces/IVerifierCommittee.sol";
import {Fixture} from "./Fixture.sol";

/// @notice What programs off chain read: events carry the exact figures.
contract EventsTest is Fixture {
    function _expect(address from) internal {
        vm.expectEmit(true, true, true, true, from);
    }

    function test_events_ofASession() public {
        ISessionEscrowTypes.SessionKey memory key = _key(1);
        bytes32 id = escrow.sessionIdOf(key);
        _expect(address(escrow));
        emit ISessionEscrowEvents.SessionOpened(id, client, modelId, 10 ether, key.expiry);
        _open(key, 10 ether);
        (ISessionEscrowTypes.Voucher memory v, bytes memory sig) = _voucher(id, 4 ether);
        escrow.settle(key, v, sig);
        (v, sig) = _voucher(id, 5 ether);
        _expect(address(escrow));
        emit ISessionEscrowEvents.Settled(id, 5 ether, 1 ether, 0.03 ether, 1_000, keccak256("receipts"));
        escrow.settle(key, v, sig);
        _expect(address(escrow));
        emit ISessionEscrowEvents.CloseRequested(id, _now() + GRACE);
        vm.prank(client);
        escrow.requestClose(key);
        vm.warp(_now() + GRACE);
        _expect(address(escrow));
        emit ISessionEscrowEvents.SessionClosed(id, 5 ether);
        escrow.finalizeClose(key);
        uint256 owed = escrow.owedOf(nodes[1]);
        _expect(address(escrow));
        emit ISessionEscrowEvents.FeesWithdrawn(nodes[1], address(0x70), owed);
        vm.prank(nodes[1]);
        escrow.withdrawFees(address(0x70));
    }

    function test_events_ofANode() public {
        _expect(address(registry));
        emit INodeRegistryEvents.NodeUpdated(nodes[0], 5, hot, 2);
        vm.prank(nodes[0]);
        registry.update(5, hot);
        _expect(address(registry));
        emit INodeRegistryEvents.EndpointUpdated(nodes[0], "https://other.example.org");
        vm.prank(nodes[0]);
        registry.setEndpoint("https://other.example.org");
        _at(3, 2);
        _expect(address(batches));
        emit ICommitmentLogEvents.BatchPosted(nodes[0], 3, 0, "root", 9);
        vm.prank(nodes[0]);
        batches.post(3, 0, "root", 9);
    }

    function test_events_ofAnAudit() public {
        address[] memory list = _one(nodes[0]);
        _at(2, 0);
        _fixSeed(2);
        Report[] memory r = _reports(2, list, _verdict(4, 6, true));
        r[2].verdicts[0] = _verdict(10, 0, false);
        _submit(2, r);
        // 6 failed units: beta 30e6, no passes.
        _expect(address(committee));
        emit IVerifierCommitteeEvents.TrustUpdated(nodes[0], 2, 4, 6, 0, 0);
        _expect(address(vault));
        emit IStakeVaultEvents.Slashed(
            nodes[0], keccak256(abi.encode(bytes32("severe"), uint64(2), nodes[0])), 20 ether, 0, 0, 20 ether
        );
        _expect(address(committee));
        emit IVerifierCommitteeEvents.NodeFailed(nodes[0], 2, true, 20 ether, 22);
        committee.finalize(2, list);
        _expect(address(committee));
        emit IVerifierCommitteeEvents.VerifierJudged(2, r[0].verifier, 0, 0, 10);
        committee.judgeVerifier(2, r[0].verifier, list);
        _expect(address(committee));
        emit IVerifierCommitteeEvents.VerifierJudged(2, r[2].verifier, 2, 2 ether, 0);
        committee.judgeVerifier(2, r[2].verifier, list);
        _expect(address(committee));
        emit IVerifierCommitteeEvents.NoQuorum(2, nodes[1], 0, 2);
        committee.finalize(2, _one(nodes[1]));
    }

    function test_events_ofARewardClaim() public {
        _at(2, 0);
        ISessionEscrowTypes.SessionKey memory key = _key(1);
        _open(key, 10 ether);
        _settle(key, 10 ether);
        _judge(2, _one(nodes[0]), _verdict(20, 0, false));
        uint256 work = escrow.workOf(2, nodes[0]);
        _expect(address(pool));
        emit IRewardPoolEvents.Weighed(2, nodes[0], work, 500_000, work / 2 / 1e9 * 1e9);
        pool.weigh(2, nodes);
        _at(4, 0);
        // The other node has no trust, so this one gets all of the servers' part.
        _expect(address(pool));
        emit IRewardPoolEvents.RewardClaimed(2, nodes[0], 0, 7 ether);
        vm.prank(nodes[0]);
        pool.claim(_one(uint64(2)));
        _expect(address(pool));
        emit IRewardPoolEvents.RewardClaimed(2, TREASURY, 2, 1 ether);
        pool.claimTreasury(_one(uint64(2)));
    }
}
