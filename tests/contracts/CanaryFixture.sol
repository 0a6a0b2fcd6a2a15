// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {ICanaryRegistryTypes} from "../../contracts/interfaces/ICanaryRegistry.sol";
import {ISessionEscrowTypes} from "../../contracts/interfaces/ISessionEscrow.sol";
import {IVerifierCommitteeTypes} from "../../contracts/interfaces/IVerifierCommittee.sol";
import {Fixture} from "./Fixture.sol";

/// @notice A session whose signer agrees to canaries, and batches of the first node that hold them beside ordinary
/// leaves. Everything is audited.
abstract contract CanaryFixture is Fixture {
    event Gas(string what, uint256 used, uint256 budget);

    bytes32 internal constant PAD = keccak256(hex"03");

    ISessionEscrowTypes.SessionKey internal session;
    uint64 internal nextJob;
    uint64 internal nextBatch;
    ICanaryRegistryTypes.Opening[] private _openings;

    function setUp() public virtual override {
        super.setUp();
        _at(2, 0);
        session = _key(1);
        session.expiry = uint40(_now() + 1_000 * EPOCH);
        _open(session, 1 ether);
    }

    function _params() internal pure virtual override returns (IVerifierCommitteeTypes.Params memory p) {
        p = super._params();
        p.pMin = 1e6;
        p.pMax = 1e6;
    }

    function _spent(string memory what, uint256 budget) internal {
        uint256 used = vm.lastCallGas().gasTotalUsed;
        emit Gas(what, used, budget);
        _atMost(used, budget);
    }

    // --------------------------------------------------------------------------------------------------- planting

    /// @dev Posts a batch of node 0 with `n` canaries, an ordinary leaf before them and one after; the clock must stand
    /// in epoch `e`.
    function _plant(uint64 e, uint256 n) internal {
        _plantMadeIn(e, e, n);
    }

    function _plantMadeIn(uint64 e, uint64 made, uint256 n) internal {
        delete _openings;
        bytes32 sessionId = escrow.sessionIdOf(session);
        bytes32[] memory leaves = new bytes32[](n + 2);
        leaves[0] = keccak256("ordinary");
        leaves[n + 1] = keccak256("ordinary, too");
        for (uint256 i; i < n; ++i) {
            ICanaryRegistryTypes.Opening memory o;
            o.jobSeq = nextJob++;
            o.commit = _commitOf(_jobId(sessionId, o.jobSeq), made);
            o.key = session;
            o.consent = _sign(HOT_KEY, canaries.consentDigest(o.commit.jobId, 0));
            o.nonce = keccak256(abi.encode("nonce", o.jobSeq));
            (o.seq, o.count, o.index) = (nextBatch, uint32(n + 2), uint32(i + 1));
            leaves[i + 1] = canaries.leafOf(o);
            _openings.push(o);
        }
        for (uint256 i; i < n; ++i) {
            _openings[i].proof = _proof(leaves, i + 1);
        }
        bytes32 root =
            _openings.length == 0 ? keccak256("ordinary batch") : _rootOf(nodes[0], e, leaves[1], _openings[0]);
        vm.prank(nodes[0]);
        batches.post(e, nextBatch, root, uint32(n + 2));
        ++nextBatch;
    }

    function _commitOf(bytes32 jobId, uint64 made) internal view returns (ICanaryRegistryTypes.HopCommit memory c) {
        (c.jobId, c.specHash) = (jobId, keccak256(abi.encode("spec", jobId)));
        (c.hi, c.wireDtype, c.tokens) = (2, 1, 7);
        (c.modelId, c.shardRoot) = (modelId, keccak256("shard"));
        (c.inRoot, c.outRoot) = (keccak256(abi.encode("in", jobId)), keccak256(abi.encode("out", jobId)));
        c.epoch = made;
    }

    function _jobId(bytes32 sessionId, uint64 jobSeq) internal pure returns (bytes32) {
        return keccak256(abi.encodePacked(bytes1(0), bytes16("EFL.job.1"), sessionId, jobSeq));
    }

    /// @dev The first `n` planted canaries in ascending order of all planted leaves.
    function _planted(uint256 n) internal view returns (ICanaryRegistryTypes.Opening[] memory o) {
        o = _openings;
        for (uint256 i; i < o.length; ++i) {
            for (uint256 j = i; j > 0 && canaries.leafOf(o[j]) < canaries.leafOf(o[j - 1]); --j) {
                (o[j], o[j - 1]) = (o[j - 1], o[j]);
            }
        }
        assembly ("memory-safe") {
            mstore(o, n)
        }
    }

    function _leavesOf(ICanaryRegistryTypes.Opening[] memory o) internal view returns (bytes32[] memory leaves) {
        leaves = new bytes32[](o.length);
        for (uint256 i; i < o.length; ++i) {
            leaves[i] = canaries.leafOf(o[i]);
        }
    }

    /// @dev What a verifier attests that found exactly these leaves wrong.
    function _fault(uint64 e, ICanaryRegistryTypes.Opening[] memory o) internal view returns (bytes32) {
        return canaries.faultDigest(seats.seedOf(e), _leavesOf(o));
    }

    function _print(uint64 e, ICanaryRegistryTypes.Opening[] memory o) internal view returns (uint32) {
        return uint32(uint256(_fault(e, o)));
    }

    function _open(uint64 e, address node, ICanaryRegistryTypes.Opening[] memory o) internal {
        vm.prank(node);
        canaries.open(e, o);
    }

    /// @dev Commits and reveals; opens the first `opened` canaries, if any; ends in the tally phase.
    function _submitAndOpen(uint64 e, Report[] memory r, uint256 opened) internal {
        _attest(e, r);
        if (opened != 0) _open(e, nodes[0], _planted(opened));
        _at(e + 1, 2);
    }

    function _tappedAll(Report[] memory r, bytes32 digest) internal pure returns (Report[] memory) {
        for (uint256 i; i < r.length; ++i) {
            _tapped(r[i], digest);
        }
        return r;
    }

    // ------------------------------------------------------------------------------------------------------- trees

    function _proof(bytes32[] memory leaves, uint256 index) internal pure returns (bytes32[] memory proof) {
        uint256 width = 1;
        uint256 depth;
        for (; width < leaves.length; width *= 2) {
            ++depth;
        }
        bytes32[] memory level = new bytes32[](width);
        for (uint256 i; i < width; ++i) {
            level[i] = i < leaves.length ? leaves[i] : PAD;
        }
        proof = new bytes32[](depth);
        for (uint256 d; d < depth; ++d) {
            proof[d] = level[index ^ 1];
            for (uint256 i; i < width >> (d + 1); ++i) {
                level[i] = keccak256(abi.encodePacked(bytes1(0x01), level[2 * i], level[2 * i + 1]));
            }
            index >>= 1;
        }
    }

    function _rootOf(address node, uint64 e, bytes32 leaf, ICanaryRegistryTypes.Opening memory o)
        internal
        pure
        returns (bytes32)
    {
        for (uint256 d; d < o.proof.length; ++d) {
            leaf = (o.index >> d) & 1 == 0
                ? keccak256(abi.encodePacked(bytes1(0x01), leaf, o.proof[d]))
                : keccak256(abi.encodePacked(bytes1(0x01), o.proof[d], leaf));
        }
        return keccak256(abi.encodePacked(bytes1(0x02), bytes16("EFL.batch.1"), node, e, o.seq, o.count, leaf));
    }
}
