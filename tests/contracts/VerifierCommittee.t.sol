// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {IAccessControl} from "@openzeppelin/contracts/access/IAccessControl.sol";
import {VerifierCommittee} from "../../contracts/VerifierCommittee.sol";
import {ISeatRegistryErrors} from "../../contracts/interfaces/ISeatRegistry.sol";
import {IVerifierCommitteeErrors, IVerifierCommitteeTypes} from "../../contracts/interfaces/IVerifierCommittee.sol";
import {Fixture} from "./Fixture.sol";

contract CommitteeParamsTest is Fixture {
    function _rejects(IVerifierCommitteeTypes.Params memory p, bytes32 name, uint256 v, uint256 min, uint256 max)
        internal
    {
        bytes memory error_ = abi.encodeWithSelector(ISeatRegistryErrors.ParamOutOfBounds.selector, name, v, min, max);
        vm.expectRevert(error_);
        committee.setParams(p);
        vm.expectRevert(error_);
        new VerifierCommittee(vault, registry, seats, GENESIS, EPOCH, p, address(this));
    }

    function test_RevertWhen_aParameterIsOutOfBounds() public {
        IVerifierCommitteeTypes.Params memory p = _params();
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
        _eq(committee.params().exclusionEpochs, 20);
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
        vm.expectRevert(abi.encodeWithSelector(ISeatRegistryErrors.NotSeated.selector, 2, client));
        vm.prank(client);
        committee.commit(2, "h");
        _at(4, 0);
        vm.expectRevert(abi.encodeWithSelector(ISeatRegistryErrors.SeedNotFixed.selector, 3));
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
        Report memory copy = Report(copier, mine.nodes, mine.verdicts, mine.taps);
        bytes32 actual = _commitment(2, copy);
        vm.expectRevert(abi.encodeWithSelector(IVerifierCommitteeErrors.CommitmentMismatch.selector, h, actual));
        _reveal(2, copy);
    }

    function test_RevertWhen_revealingWithoutACommitmentOrTwice() public {
        _commit(2, mine);
        _at(3, 1);
        address other = mine.verifier == verifiers[0] ? verifiers[1] : verifiers[0];
        Report memory nothing = _plain(other, new address[](0), new uint16[](0));
        vm.expectRevert(abi.encodeWithSelector(IVerifierCommitteeErrors.NothingToReveal.selector, 2, other));
        _reveal(2, nothing);
        _reveal(2, mine);
        vm.expectRevert(abi.encodeWithSelector(IVerifierCommitteeErrors.NothingToReveal.selector, 2, mine.verifier));
        _reveal(2, mine);
    }

    function test_RevertWhen_lengthsDiffer() public {
        _commit(2, mine);
        _at(3, 1);
        vm.expectRevert(abi.encodeWithSelector(IVerifierCommitteeErrors.LengthMismatch.selector, 1, 0, 1, 1));
        vm.prank(mine.verifier);
        committee.reveal(2, _one(nodes[0]), new uint16[](0), new bytes32[](1), new bytes32[](1), SALT);
    }

    function test_RevertWhen_aNodeStandsTwice() public {
        Report memory twice = _plain(mine.verifier, new address[](2), new uint16[](2));
        (twice.nodes[0], twice.nodes[1]) = (mine.nodes[0], mine.nodes[0]);
        _commit(2, twice);
        _at(3, 1);
        vm.expectRevert(abi.encodeWithSelector(IVerifierCommitteeErrors.DuplicateNode.selector, mine.nodes[0]));
        _reveal(2, twice);
    }

    function test_RevertWhen_theAddressIsNoNode() public {
        Report memory r = _plain(mine.verifier, _one(address(0xBAD)), new uint16[](1));
        _commit(2, r);
        _at(3, 1);
        vm.expectRevert(abi.encodeWithSelector(IVerifierCommitteeErrors.UnknownNode.selector, address(0xBAD)));
        _reveal(2, r);
    }

    function test_RevertWhen_notDrawn() public {
        address outsider;
        for (uint256 i; i < 5; ++i) {
            if (!seats.isDrawn(2, nodes[0], verifiers[i])) outsider = verifiers[i];
        }
        Report memory r = _plain(outsider, _one(nodes[0]), new uint16[](1));
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
        bytes32 plain = keccak256(abi.encode(blockhash(seats.armedBlock(3)), bytes32(0), uint64(3)));
        _true(seats.seedOf(3) != plain, "salts went in");
    }
}
