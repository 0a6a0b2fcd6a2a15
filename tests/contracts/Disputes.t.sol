// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {IAccessControl} from "@openzeppelin/contracts/access/IAccessControl.sol";
import {CommitmentLog} from "../../contracts/CommitmentLog.sol";
import {DisputeGame} from "../../contracts/DisputeGame.sol";
import {IDisputeGameErrors, IDisputeGameEvents, IDisputeGameTypes} from "../../contracts/interfaces/IDisputeGame.sol";
import {INodeRegistryErrors} from "../../contracts/interfaces/INodeRegistry.sol";
import {ISessionEscrowTypes} from "../../contracts/interfaces/ISessionEscrow.sol";
import {IStakeVaultTypes} from "../../contracts/interfaces/IStakeVault.sol";
import {IVerifierCommitteeErrors, IVerifierCommitteeEvents} from "../../contracts/interfaces/IVerifierCommittee.sol";
import {DisputeFixture} from "./DisputeFixture.sol";

/// @notice What two signatures of a node cost it, and what is no proof.
contract EquivocationTest is DisputeFixture {
    uint256 internal constant SLASHED = NODE_STAKE / 2;
    uint256 internal constant REWARD = SLASHED * 3 / 10;

    event Gas(string what, uint256 used, uint256 budget);

    function setUp() public override {
        super.setUp();
        _at(2, 1);
    }

    function test_gas_equivocation() public {
        Proof memory p = _lie(JOB);
        _prove(p);
        uint256 used = vm.lastCallGas().gasTotalUsed;
        emit Gas("prove an equivocation, new accuser", used, 230_000);
        _atMost(used, 230_000);
        _prove(_lie("another job"));
        used = vm.lastCallGas().gasTotalUsed;
        emit Gas("prove an equivocation, again", used, 180_000);
        _atMost(used, 180_000);
    }

    function test_twoSignatures_areSlashedPaidAndExcluded() public {
        Proof memory p = _lie(JOB);
        uint256 supply = token.totalSupply();
        (bytes32 x, bytes32 y) = (disputes.commitDigest(p.a), disputes.commitDigest(p.b));
        vm.expectEmit(true, true, true, true, address(committee));
        emit IVerifierCommitteeEvents.NodeConvicted(nodes[0], 2, 22);
        vm.expectEmit(true, true, true, true, address(disputes));
        emit IDisputeGameEvents.EquivocationProven(nodes[0], JOB, 0, ACCUSER, x, y, SLASHED, REWARD, 22);
        (uint256 slashed, uint256 reward) = _prove(p);
        _eq(slashed, SLASHED);
        _eq(reward, REWARD);
        _eq(vault.stakeOf(nodes[0]).active, NODE_STAKE - SLASHED);
        _eq(token.balanceOf(ACCUSER), REWARD);
        _eq(token.totalSupply(), supply - SLASHED + REWARD);
        _true(disputes.isProven(nodes[0], JOB, 0), "the case is closed");
        _eq(committee.standingOf(nodes[0]), 0);
        (,,, uint16 offences, uint32 until) = committee.trustState(nodes[0]);
        _eq(offences, 1);
        _eq(until, 22);
        _eq(vault.jailedUntil(nodes[0]), GENESIS + 21 * EPOCH);
        // Its neighbour has nothing to do with it.
        _eq(vault.stakeOf(nodes[1]).active, NODE_STAKE);
        _eq(committee.standingOf(nodes[1]), 1);
    }

    function test_theConvicted_takesNoSessions() public {
        _prove(_lie(JOB));
        ISessionEscrowTypes.SessionKey memory key = _key(1);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistryErrors.NodeJailed.selector, nodes[0], GENESIS + 21 * EPOCH));
        vm.prank(client);
        escrow.open(key, 1 ether);
        // Jail and exclusion are two locks on one door.
        vm.expectRevert(abi.encodeWithSelector(IVerifierCommitteeErrors.NodeExcluded.selector, nodes[0], 22));
        committee.checkStanding(nodes, 1);
    }

    function test_trustIsVoid_fromTheNextEpochOn() public {
        _trusted(2);
        _at(4, 0);
        uint256 trust = committee.trustOf(nodes[0]);
        uint256 rate = committee.auditRate(nodes[0]);
        _prove(_lie(JOB));
        // What is audited of epoch 3 follows from the rate in epoch 4: it may not move under those who audit.
        _eq(committee.trustOf(nodes[0]), trust);
        _eq(committee.auditRate(nodes[0]), rate);
        _judge(3, nodes, _verdict(10, 0, false));
        _true(committee.trustOf(nodes[0]) >= trust, "the verdict on the epoch before still counts");
        _at(5, 0);
        _eq(committee.trustOf(nodes[0]), 0);
        _eq(committee.auditRate(nodes[0]), 500_000);
        (uint64 alpha, uint64 beta,,,) = committee.trustState(nodes[0]);
        _eq(alpha, 0);
        _eq(beta, 1e9);
        // It cannot earn it back within the exclusion, and comes out on probation.
        _judge(4, nodes, _verdict(100, 0, false));
        _true(committee.trustOf(nodes[0]) < 10_000, "one good epoch is nothing against it");
        _at(24, 0);
        _eq(committee.standingOf(nodes[0]), 1);
    }

    function test_aSecondConviction_addsUp() public {
        _prove(_lie(JOB));
        _at(4, 0);
        (uint256 slashed,) = _prove(_lie("another job"));
        _eq(slashed, NODE_STAKE / 4);
        _at(5, 0);
        (, uint64 beta,, uint16 offences, uint32 until) = committee.trustState(nodes[0]);
        // Two of 64 parts of the first are gone.
        _eq(beta, 1e9 + _decayed(_decayed(1e9)));
        _eq(offences, 2);
        _eq(until, 24);
    }

    function _decayed(uint256 x) private pure returns (uint256) {
        return x - (x >> 6);
    }

    function test_anyDifference_isTwoCommits() public {
        IDisputeGameTypes.HopCommit memory a = _commitOf(JOB, "one");
        IDisputeGameTypes.HopCommit memory b = _commitOf(JOB, "one");
        // The same work committed to again in the next epoch is another commit.
        b.epoch += 1;
        _prove(_proof(nodes[0], a, _nodeKey(0), b, _nodeKey(0)));
        _true(disputes.isProven(nodes[0], JOB, 0), "proven");
    }

    // ------------------------------------------------------------------------------------------- keys that changed

    function test_keysThatChanged_hideNothing() public {
        Proof memory before = _lie(JOB);
        vm.prank(nodes[0]);
        registry.update(1_000, vm.addr(ROTATED_KEY));
        // Known from the moment it is named, and the old one stays known.
        _true(registry.isSigner(nodes[0], vm.addr(ROTATED_KEY)), "named");
        IDisputeGameTypes.HopCommit memory a = _commitOf("second", "one");
        IDisputeGameTypes.HopCommit memory b = _commitOf("second", "other");
        _prove(_proof(nodes[0], a, _nodeKey(0), b, ROTATED_KEY));
        _at(5, 0);
        _eqAddress(registry.nodeOf(nodes[0]).signer, vm.addr(ROTATED_KEY));
        vm.prank(nodes[0]);
        registry.retire();
        _prove(before);
        a.jobId = b.jobId = "third";
        _prove(_proof(nodes[0], a, ROTATED_KEY, b, ROTATED_KEY));
        _eq(vault.stakeOf(nodes[0]).active, NODE_STAKE / 8);
    }

    function test_stakeThatIsLeaving_isTakenToo() public {
        vm.prank(nodes[0]);
        vault.unbond(NODE_STAKE);
        _prove(_lie(JOB));
        _eq(vault.stakeOf(nodes[0]).unbonding, NODE_STAKE - SLASHED);
    }

    function test_RevertWhen_nothingIsAtStake_andTheProofStaysGood() public {
        vm.prank(nodes[0]);
        vault.unbond(NODE_STAKE);
        vm.warp(_now() + UNBONDING);
        vm.prank(nodes[0]);
        vault.withdraw();
        Proof memory p = _lie(JOB);
        _refused(p, abi.encodeWithSelector(IDisputeGameErrors.NothingAtStake.selector, nodes[0]));
        vm.prank(nodes[0]);
        vault.stake(NODE_STAKE);
        (uint256 slashed,) = _prove(p);
        _eq(slashed, SLASHED);
    }

    // --------------------------------------------------------------------------------------------- what is no proof

    function test_RevertWhen_provenBefore_inAnyForm() public {
        Proof memory p = _lie(JOB);
        _prove(p);
        bytes memory known =
            abi.encodeWithSelector(IDisputeGameErrors.AlreadyProven.selector, disputes.caseIdOf(nodes[0], JOB, 0));
        _refused(p, known);
        Proof memory third = _proof(nodes[0], p.a, _nodeKey(0), _commitOf(JOB, "third"), _nodeKey(0));
        _refused(third, known);
    }

    function test_RevertWhen_itIsOneCommit() public {
        Proof memory p = _lie(JOB);
        p.b = p.a;
        p.sigB = p.sigA;
        bytes32 x = disputes.commitDigest(p.a);
        _refused(p, abi.encodeWithSelector(IDisputeGameErrors.CommitsNotAscending.selector, x, x));
    }

    function test_RevertWhen_theOrderIsTheOther() public {
        Proof memory p = _swapped(_lie(JOB));
        (bytes32 x, bytes32 y) = (disputes.commitDigest(p.a), disputes.commitDigest(p.b));
        _refused(p, abi.encodeWithSelector(IDisputeGameErrors.CommitsNotAscending.selector, x, y));
    }

    function test_RevertWhen_jobOrHopDiffer() public {
        IDisputeGameTypes.HopCommit memory a = _commitOf(JOB, "one");
        IDisputeGameTypes.HopCommit memory b = _commitOf("another", "one");
        Proof memory p = _proof(nodes[0], a, _nodeKey(0), b, _nodeKey(0));
        _refused(p, abi.encodeWithSelector(IDisputeGameErrors.NotTheSameWork.selector, p.a.jobId, 0, p.b.jobId, 0));
        b = _commitOf(JOB, "one");
        b.hop = 1;
        p = _proof(nodes[0], a, _nodeKey(0), b, _nodeKey(0));
        _refused(p, abi.encodeWithSelector(IDisputeGameErrors.NotTheSameWork.selector, JOB, p.a.hop, JOB, p.b.hop));
    }

    function test_RevertWhen_aKeyIsNotTheNodes() public {
        Proof memory p = _lie(JOB);
        // Of another node.
        p.node = nodes[1];
        _refused(p, abi.encodeWithSelector(IDisputeGameErrors.NotSignedByNode.selector, nodes[1], nodes[0]));
        p.node = nodes[0];
        // Of nobody: one of the two, then the other.
        for (uint256 i; i < 2; ++i) {
            p = _proof(
                nodes[0],
                _commitOf(JOB, "one"),
                i == 0 ? CLIENT_KEY : _nodeKey(0),
                _commitOf(JOB, "other"),
                i == 0 ? _nodeKey(0) : CLIENT_KEY
            );
            _refused(p, abi.encodeWithSelector(IDisputeGameErrors.NotSignedByNode.selector, nodes[0], client));
        }
    }

    function test_RevertWhen_aSignatureIsMalformedOrMalleable() public {
        Proof memory p = _lie(JOB);
        bytes memory good = p.sigB;
        bytes memory error_ = abi.encodeWithSelector(IDisputeGameErrors.NotSignedByNode.selector, nodes[0], address(0));
        p.sigB = _malleable(good);
        _refused(p, error_);
        p.sigB = "";
        _refused(p, error_);
        p.sigB = abi.encodePacked(good, bytes1(0));
        _refused(p, error_);
        p.sigB = good;
        p.sigA = new bytes(65);
        _refused(p, error_);
    }

    /// @dev The other s of the same signature.
    function _malleable(bytes memory sig) private pure returns (bytes memory) {
        (bytes32 r, bytes32 s, uint8 v) = (0, 0, uint8(sig[64]));
        assembly ("memory-safe") {
            r := mload(add(sig, 32))
            s := mload(add(sig, 64))
        }
        uint256 n = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141;
        return abi.encodePacked(r, bytes32(n - uint256(s)), v == 27 ? uint8(28) : uint8(27));
    }

    function test_RevertWhen_signedForAnotherDeployment() public {
        CommitmentLog other = new CommitmentLog(registry, GENESIS, EPOCH, WINDOW);
        DisputeGame elsewhere = new DisputeGame(vault, registry, committee, other, SLASH_BPS, REWARD_BPS);
        IDisputeGameTypes.HopCommit memory a = _commitOf(JOB, "one");
        IDisputeGameTypes.HopCommit memory b = _commitOf(JOB, "other");
        Proof memory p = _proof(nodes[0], a, _nodeKey(0), b, _nodeKey(0));
        p.sigA = _sign(_nodeKey(0), elsewhere.commitDigest(p.a));
        p.sigB = _sign(_nodeKey(0), elsewhere.commitDigest(p.b));
        // Read as if signed here, it is by some other key.
        address other_ = ECDSA.recover(disputes.commitDigest(p.a), p.sigA);
        _refused(p, abi.encodeWithSelector(IDisputeGameErrors.NotSignedByNode.selector, nodes[0], other_));
    }

    /// forge-config: default.fuzz.runs = 64
    function testFuzz_commitDigest_isExact(IDisputeGameTypes.HopCommit memory c) public view {
        bytes32 domain = keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
                keccak256("EFL"),
                keccak256("1"),
                block.chainid,
                address(batches)
            )
        );
        bytes32 t = keccak256(
            "HopCommit(bytes32 jobId,bytes32 specHash,uint16 hop,uint16 lo,uint16 hi,uint8 profile,uint8 wireDtype,uint32 tokens,bytes32 modelId,bytes32 shardRoot,bytes32 inRoot,bytes32 outRoot,bytes32 tokensHash,bytes32 auxRoot,bytes32 prevCommit,uint64 epoch)"
        );
        bytes memory head = abi.encode(t, c.jobId, c.specHash, c.hop, c.lo, c.hi, c.profile, c.wireDtype, c.tokens);
        bytes memory tail =
            abi.encode(c.modelId, c.shardRoot, c.inRoot, c.outRoot, c.tokensHash, c.auxRoot, c.prevCommit, c.epoch);
        bytes32 inner = keccak256(bytes.concat(head, tail));
        _eq32(disputes.commitDigest(c), keccak256(abi.encodePacked("\x19\x01", domain, inner)));
    }

    function test_anotherChain_hasOtherDigests() public {
        IDisputeGameTypes.HopCommit memory c = _commitOf(JOB, "one");
        bytes32 here = disputes.commitDigest(c);
        vm.chainId(block.chainid + 1);
        _true(disputes.commitDigest(c) != here, "bound to the chain");
    }

    function test_RevertWhen_strangersConvict() public {
        vm.expectRevert(
            abi.encodeWithSelector(
                IAccessControl.AccessControlUnauthorizedAccount.selector, ACCUSER, committee.DISPUTE_ROLE()
            )
        );
        vm.prank(ACCUSER);
        committee.convict(nodes[0]);
    }

    function test_RevertWhen_deployedOutOfBounds() public {
        vm.expectRevert(
            abi.encodeWithSelector(
                IDisputeGameErrors.ParamOutOfBounds.selector, bytes32("slashBps"), 999, 1_000, 10_000
            )
        );
        new DisputeGame(vault, registry, committee, batches, 999, 0);
        vm.expectRevert(
            abi.encodeWithSelector(IDisputeGameErrors.ParamOutOfBounds.selector, bytes32("rewardBps"), 5_001, 0, 5_000)
        );
        new DisputeGame(vault, registry, committee, batches, 5_000, 5_001);
    }

    function test_noSwitchClosesDisputes() public {
        registry.setEntryPaused(true);
        seats.setEntryPaused(true);
        escrow.setEntryPaused(true);
        batches.setEntryPaused(true);
        _prove(_lie(JOB));
    }

    // --------------------------------------------------------------------------------------------------------- fuzz

    /// @notice Whatever the stake and however much of it is leaving: the accuser gets less than what its own stake would
    /// have lost, so that accusing oneself is no exit.
    function testFuzz_accusingOneselfLosesAtLeastHalfOfTheSlash(uint96 stake, uint96 leaving, uint16 slash, uint16 cut)
        public
    {
        stake = uint96(_bound(stake, 1, 1e24));
        slash = uint16(_bound(slash, 1_000, 10_000));
        cut = uint16(_bound(cut, 0, 5_000));
        DisputeGame game = new DisputeGame(vault, registry, committee, batches, slash, cut);
        vault.grantRole(vault.SLASHER_ROLE(), address(game));
        committee.grantRole(committee.DISPUTE_ROLE(), address(game));
        _stake(nodes[0], stake);
        vm.prank(nodes[0]);
        vault.unbond(_bound(leaving, 1, stake));
        Proof memory p = _lie(JOB);
        IStakeVaultTypes.Stake memory before = vault.stakeOf(nodes[0]);
        uint256 total = uint256(before.active) + before.unbonding;
        vm.prank(nodes[0]);
        (uint256 slashed, uint256 reward) = game.proveEquivocation(p.node, p.a, p.sigA, p.b, p.sigB);
        IStakeVaultTypes.Stake memory left = vault.stakeOf(nodes[0]);
        _eq(slashed, (total * slash + 9_999) / 10_000);
        _eq(uint256(left.active) + left.unbonding, total - slashed);
        _atMost(2 * reward, slashed);
        _eq(token.balanceOf(nodes[0]), reward);
    }

    /// @notice One number changed anywhere but in job and hop makes two commits of one, and a proof.
    function testFuzz_anyFieldMakesAnotherCommit(uint8 field, uint256 value) public {
        IDisputeGameTypes.HopCommit memory a = _commitOf(JOB, "one");
        IDisputeGameTypes.HopCommit memory b = _commitOf(JOB, "one");
        field = uint8(_bound(field, 0, 13));
        if (field == 0) b.specHash = bytes32(value);
        else if (field == 1) b.lo = uint16(value);
        else if (field == 2) b.hi = uint16(value);
        else if (field == 3) b.profile = uint8(value);
        else if (field == 4) b.wireDtype = uint8(value);
        else if (field == 5) b.tokens = uint32(value);
        else if (field == 6) b.modelId = bytes32(value);
        else if (field == 7) b.shardRoot = bytes32(value);
        else if (field == 8) b.inRoot = bytes32(value);
        else if (field == 9) b.outRoot = bytes32(value);
        else if (field == 10) b.tokensHash = bytes32(value);
        else if (field == 11) b.auxRoot = bytes32(value);
        else if (field == 12) b.prevCommit = bytes32(value);
        else b.epoch = uint64(value);
        vm.assume(keccak256(abi.encode(a)) != keccak256(abi.encode(b)));
        _prove(_proof(nodes[0], a, _nodeKey(0), b, _nodeKey(0)));
        _true(disputes.isProven(nodes[0], JOB, 0), "proven");
    }
}
