// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {IAccessControl} from "@openzeppelin/contracts/access/IAccessControl.sol";
import {ICanaryRegistryErrors, ICanaryRegistryTypes} from "../../contracts/interfaces/ICanaryRegistry.sol";
import {ISessionEscrowTypes} from "../../contracts/interfaces/ISessionEscrow.sol";
import {IVerifierCommitteeTypes} from "../../contracts/interfaces/IVerifierCommittee.sol";
import {CanaryFixture} from "./CanaryFixture.sol";

/// @notice What `open` takes, and everything that it refuses.
contract CanaryOpenTest is CanaryFixture {
    event CanaryOpened(address indexed node, uint64 indexed epoch, bytes32[] leaves);

    function setUp() public override {
        super.setUp();
        _plant(2, 3);
        _fixSeed(2);
        _at(3, 1);
    }

    function _good() internal view returns (ICanaryRegistryTypes.Opening[] memory o) {
        return _planted(1);
    }

    function _refused(ICanaryRegistryTypes.Opening[] memory o, bytes memory error_) internal {
        vm.expectRevert(error_);
        vm.prank(nodes[0]);
        canaries.open(2, o);
        _eq(committee.canaryOf(2, nodes[0]), 0);
    }

    function test_open_admitsTheFingerprintOfExactlyTheseLeaves() public {
        ICanaryRegistryTypes.Opening[] memory o = _planted(3);
        bytes32[] memory leaves = _leavesOf(o);
        bytes32 digest =
            keccak256(abi.encodePacked(bytes1(0x02), bytes16("EFL.fault.node.1"), seats.seedOf(2), uint32(3), leaves));
        _eq32(canaries.faultDigest(seats.seedOf(2), leaves), digest);
        vm.expectEmit(true, true, true, true, address(canaries));
        emit CanaryOpened(nodes[0], 2, leaves);
        vm.prank(nodes[0]);
        canaries.open(2, o);
        _eq(committee.canaryOf(2, nodes[0]), uint32(uint256(digest)));
        _eq(committee.canaryOf(2, nodes[1]), 0);
        _eq(committee.canaryOf(3, nodes[0]), 0);
    }

    function test_open_takesASubset() public {
        // The rest of the planted leaves counts as failed for real, should they have been found.
        _open(2, nodes[0], _planted(2));
        _eq(committee.canaryOf(2, nodes[0]), _print(2, _planted(2)));
    }

    function test_open_ofASessionThatIsClosed() public {
        vm.prank(client);
        escrow.requestClose(session);
        vm.warp(_now() + GRACE);
        escrow.finalizeClose(session);
        _eq(escrow.sessionOf(escrow.sessionIdOf(session)).status, 3);
        _at(4, 0);
        _plant(4, 1);
        _fixSeed(4);
        _at(5, 1);
        _open(4, nodes[0], _planted(1));
    }

    function test_open_ofACommitMadeInTheEpochBefore() public {
        _at(4, 0);
        _plantMadeIn(4, 3, 1);
        _fixSeed(4);
        _at(5, 1);
        _open(4, nodes[0], _planted(1));
        _true(committee.canaryOf(4, nodes[0]) != 0, "opened");
    }

    function test_RevertWhen_theCommitIsOfAnotherEpoch() public {
        _at(5, 0);
        uint64[2] memory wrong = [uint64(3), 6];
        for (uint64 i; i < 2; ++i) {
            uint64 e = 5 + i;
            _at(e, 0);
            _plantMadeIn(e, e == 5 ? wrong[0] : e + 1, 1);
            _fixSeed(e);
            _at(e + 1, 1);
            ICanaryRegistryTypes.Opening[] memory o = _planted(1);
            vm.expectRevert(
                abi.encodeWithSelector(ICanaryRegistryErrors.WrongCommitEpoch.selector, e, o[0].commit.epoch)
            );
            vm.prank(nodes[0]);
            canaries.open(e, o);
        }
    }

    function test_RevertWhen_outOfPhase() public {
        _at(3, 0);
        _refused(_good(), abi.encodeWithSelector(ICanaryRegistryErrors.WrongPhase.selector, 2, 1, 3, 0));
        _at(3, 2);
        _refused(_good(), abi.encodeWithSelector(ICanaryRegistryErrors.WrongPhase.selector, 2, 1, 3, 2));
        _at(4, 1);
        _refused(_good(), abi.encodeWithSelector(ICanaryRegistryErrors.WrongPhase.selector, 2, 1, 4, 1));
        _at(2, 1);
        _refused(_good(), abi.encodeWithSelector(ICanaryRegistryErrors.WrongPhase.selector, 2, 1, 2, 1));
    }

    function test_RevertWhen_noSeed() public {
        _at(4, 0);
        _plant(4, 1);
        _at(5, 1);
        ICanaryRegistryTypes.Opening[] memory o = _planted(1);
        vm.expectRevert(abi.encodeWithSelector(ICanaryRegistryErrors.SeedNotFixed.selector, 4));
        vm.prank(nodes[0]);
        canaries.open(4, o);
    }

    function test_RevertWhen_nothingOrTooMuch() public {
        _refused(
            new ICanaryRegistryTypes.Opening[](0),
            abi.encodeWithSelector(ICanaryRegistryErrors.OpeningsOutOfBounds.selector, 0, 16)
        );
        _refused(
            new ICanaryRegistryTypes.Opening[](17),
            abi.encodeWithSelector(ICanaryRegistryErrors.OpeningsOutOfBounds.selector, 17, 16)
        );
    }

    function test_RevertWhen_openedAgain() public {
        ICanaryRegistryTypes.Opening[] memory o = _planted(1);
        ICanaryRegistryTypes.Opening[] memory more = _planted(2);
        vm.prank(nodes[0]);
        canaries.open(2, o);
        vm.expectRevert(abi.encodeWithSelector(ICanaryRegistryErrors.AlreadyOpened.selector, 2, nodes[0]));
        vm.prank(nodes[0]);
        canaries.open(2, more);
    }

    function test_RevertWhen_theSessionNeverExisted() public {
        ICanaryRegistryTypes.Opening[] memory o = _good();
        o[0].key.nonce = 99;
        _refused(o, abi.encodeWithSelector(ICanaryRegistryErrors.UnknownSession.selector, escrow.sessionIdOf(o[0].key)));
    }

    function test_RevertWhen_theJobIsAnother() public {
        ICanaryRegistryTypes.Opening[] memory o = _good();
        bytes32 job = o[0].commit.jobId;
        o[0].jobSeq += 1;
        bytes32 other = _jobId(escrow.sessionIdOf(session), o[0].jobSeq);
        _refused(o, abi.encodeWithSelector(ICanaryRegistryErrors.WrongJob.selector, other, job));
    }

    function test_RevertWhen_anotherNodeOpens() public {
        ICanaryRegistryTypes.Opening[] memory o = _good();
        vm.expectRevert(abi.encodeWithSelector(ICanaryRegistryErrors.NotTheHop.selector, nodes[1], 0));
        vm.prank(nodes[1]);
        canaries.open(2, o);
        o[0].commit.hop = 2;
        _refused(o, abi.encodeWithSelector(ICanaryRegistryErrors.NotTheHop.selector, nodes[0], 2));
        o[0].commit.hop = 1;
        _refused(o, abi.encodeWithSelector(ICanaryRegistryErrors.NotTheHop.selector, nodes[0], 1));
    }

    function test_RevertWhen_theConsentIsNotTheSigners() public {
        bytes memory error_ = abi.encodeWithSelector(ICanaryRegistryErrors.NoConsent.selector, hot);
        ICanaryRegistryTypes.Opening[] memory o = _good();
        bytes memory good = o[0].consent;
        bytes32 digest = canaries.consentDigest(o[0].commit.jobId, 0);
        // The client's own key is not the session's, and the node's is nobody's.
        o[0].consent = _sign(CLIENT_KEY, digest);
        _refused(o, error_);
        o[0].consent = _sign(_nodeKey(0), digest);
        _refused(o, error_);
        // Consent to another hop of the same job.
        o[0].consent = _sign(HOT_KEY, canaries.consentDigest(o[0].commit.jobId, 1));
        _refused(o, error_);
        o[0].consent = "";
        _refused(o, error_);
        bytes memory longer = abi.encodePacked(good, bytes1(0));
        o[0].consent = longer;
        _refused(o, error_);
        // The second signature that anybody can derive from the first one.
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(HOT_KEY, digest);
        uint256 order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141;
        o[0].consent = abi.encodePacked(r, bytes32(order - uint256(s)), v == 27 ? uint8(28) : uint8(27));
        _refused(o, error_);
    }

    function test_RevertWhen_theLeafIsNotInTheBatch() public {
        // Whatever of the leaf is changed, the root is another one: an ordinary salt, above all.
        ICanaryRegistryTypes.Opening[] memory o = _good();
        o[0].nonce = keccak256("made up afterwards");
        _refusedRoot(o);
        o = _good();
        o[0].commit.outRoot = keccak256("other output");
        _refusedRoot(o);
        o = _good();
        o[0].seq += 1;
        _refusedRoot(o);
        o = _good();
        o[0].proof[0] = keccak256("other sibling");
        _refusedRoot(o);
        o = _good();
        o[0].index ^= 1;
        _refusedRoot(o);
    }

    function _refusedRoot(ICanaryRegistryTypes.Opening[] memory o) internal {
        _refused(
            o,
            abi.encodeWithSelector(
                ICanaryRegistryErrors.UnknownBatch.selector,
                2,
                o[0].seq,
                _rootOf(nodes[0], 2, canaries.leafOf(o[0]), o[0])
            )
        );
    }

    function test_RevertWhen_theProofDoesNotFitTheCount() public {
        ICanaryRegistryTypes.Opening[] memory o = _good();
        uint256 length = o[0].proof.length;
        o[0].proof = new bytes32[](length + 1);
        _refused(o, abi.encodeWithSelector(ICanaryRegistryErrors.BadProof.selector, o[0].index, o[0].count, length + 1));
        o[0].proof = new bytes32[](length - 1);
        _refused(o, abi.encodeWithSelector(ICanaryRegistryErrors.BadProof.selector, o[0].index, o[0].count, length - 1));
        o = _good();
        o[0].index = o[0].count;
        _refused(o, abi.encodeWithSelector(ICanaryRegistryErrors.BadProof.selector, o[0].count, o[0].count, length));
        o[0].count = 0;
        _refused(o, abi.encodeWithSelector(ICanaryRegistryErrors.BadProof.selector, o[0].index, 0, length));
    }

    function test_RevertWhen_leavesRepeatOrStandInAnotherOrder() public {
        ICanaryRegistryTypes.Opening[] memory o = _planted(2);
        bytes32[] memory leaves = _leavesOf(o);
        (o[0], o[1]) = (o[1], o[0]);
        _refused(o, abi.encodeWithSelector(ICanaryRegistryErrors.LeavesNotAscending.selector, leaves[1], leaves[0]));
        o[1] = o[0];
        _refused(o, abi.encodeWithSelector(ICanaryRegistryErrors.LeavesNotAscending.selector, leaves[1], leaves[1]));
    }

    function test_RevertWhen_aStrangerAdmitsCanaries() public {
        vm.expectRevert(
            abi.encodeWithSelector(
                IAccessControl.AccessControlUnauthorizedAccount.selector, nodes[0], committee.CANARY_ROLE()
            )
        );
        vm.prank(nodes[0]);
        committee.admitCanaries(2, nodes[0], keccak256("anything"));
    }

    function test_gas_open() public {
        ICanaryRegistryTypes.Opening[] memory one = _planted(1);
        vm.prank(nodes[0]);
        canaries.open(2, one);
        _spent("open one canary", 122_000);
        _at(4, 0);
        _plant(4, 16);
        _fixSeed(4);
        _at(5, 1);
        ICanaryRegistryTypes.Opening[] memory all = _planted(16);
        vm.prank(nodes[0]);
        canaries.open(4, all);
        _spent("open sixteen canaries", 800_000);
    }
}

/// @notice At an audit rate below one, leaves that were not drawn stay secret.
contract CanarySamplingTest is CanaryFixture {
    function _params() internal pure override returns (IVerifierCommitteeTypes.Params memory p) {
        p = super._params();
        p.pMin = 100_000;
        p.pMax = 500_000;
    }

    function test_onlyAuditedLeavesOpen() public {
        _plant(2, 16);
        _fixSeed(2);
        _at(3, 1);
        ICanaryRegistryTypes.Opening[] memory all = _planted(16);
        bytes32 seed = seats.seedOf(2);
        uint256 sampled;
        for (uint256 i; i < 16; ++i) {
            bytes32 leaf = canaries.leafOf(all[i]);
            uint256 x = uint256(keccak256(abi.encodePacked(seed, leaf)));
            // Half of all draws: the rate of a new node is 500000 ppm.
            bool drawn = x < 1 << 255;
            if (drawn) {
                all[sampled++] = all[i];
            } else {
                ICanaryRegistryTypes.Opening[] memory one = new ICanaryRegistryTypes.Opening[](1);
                one[0] = all[i];
                vm.expectRevert(
                    abi.encodeWithSelector(
                        ICanaryRegistryErrors.LeafNotSampled.selector, leaf, _mulShift(x), uint256(500_000)
                    )
                );
                vm.prank(nodes[0]);
                canaries.open(2, one);
            }
        }
        _true(sampled != 0 && sampled != 16, "both kinds among sixteen");
        assembly ("memory-safe") {
            mstore(all, sampled)
        }
        _open(2, nodes[0], all);
        _eq(committee.canaryOf(2, nodes[0]), _print(2, all));
    }

    /// @dev floor(x * 1e6 / 2^256) by long multiplication in quarters.
    function _mulShift(uint256 x) internal pure returns (uint256 carry) {
        for (uint256 i; i < 4; ++i) {
            uint256 quarter = (x >> (64 * i)) & type(uint64).max;
            carry = (quarter * 1e6 + carry) >> 64;
        }
    }
}
