// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {DisputeGame} from "../../contracts/DisputeGame.sol";
import {NodeRegistry} from "../../contracts/NodeRegistry.sol";
import {IDisputeGameTypes} from "../../contracts/interfaces/IDisputeGame.sol";
import {Fixture} from "./Fixture.sol";
import {TestBase} from "./Vm.sol";

/// @notice Two nodes sign commits, one of them sometimes twice, both change keys at will, and somebody shows every pair
/// of signatures that there is, right or wrong.
contract DisputeHandler is TestBase {
    struct Signed {
        IDisputeGameTypes.HopCommit commit;
        bytes signature;
        uint256 by;
    }

    DisputeGame internal immutable game;
    NodeRegistry internal immutable registry;
    address[2] public operators;
    uint256[2] public keys;
    Signed[] internal shown;
    mapping(uint256 node => mapping(bytes32 job => bool)) internal signed;
    mapping(uint256 node => uint256) public slashed;
    mapping(uint256 node => uint256) public cases;

    constructor(DisputeGame game_, NodeRegistry registry_, address[2] memory operators_, uint256[2] memory keys_) {
        game = game_;
        registry = registry_;
        operators = operators_;
        keys = keys_;
    }

    /// @dev The first node is honest: it signs a job once. The second signs whatever it is asked for.
    function sign(uint256 who, uint8 job, bytes32 output) external {
        who %= 2;
        bytes32 id = bytes32(uint256(job % 4));
        if (shown.length == 24 || (who == 0 && signed[0][id])) return;
        signed[who][id] = true;
        IDisputeGameTypes.HopCommit memory c;
        (c.jobId, c.outRoot, c.hop) = (id, output, uint16(who));
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(keys[who], game.commitDigest(c));
        shown.push();
        Signed storage last = shown[shown.length - 1];
        (last.commit, last.signature, last.by) = (c, abi.encodePacked(r, s, v), who);
    }

    function rotate(uint256 who, uint16 key) external {
        who %= 2;
        keys[who] = (who + 1) * 1e6 + key;
        vm.prank(operators[who]);
        registry.update(1_000, vm.addr(keys[who]));
    }

    function pass(uint16 seconds_) external {
        vm.warp(vm.getBlockTimestamp() + seconds_);
    }

    /// @dev Anybody shows any two signatures against any node.
    function accuse(uint256 against, uint256 i, uint256 j) external {
        if (shown.length < 2) return;
        against %= 2;
        Signed memory a = shown[i % shown.length];
        Signed memory b = shown[j % shown.length];
        if (game.commitDigest(b.commit) < game.commitDigest(a.commit)) (a, b) = (b, a);
        try game.proveEquivocation(operators[against], a.commit, a.signature, b.commit, b.signature) returns (
            uint256 taken, uint256 reward
        ) {
            _true(a.by == against && b.by == against, "blamed for its own signatures");
            _true(a.commit.jobId == b.commit.jobId && a.commit.outRoot != b.commit.outRoot, "that contradict");
            _atMost(2 * reward, taken);
            slashed[against] += taken;
            ++cases[against];
        } catch {}
    }
}

contract DisputeInvariantTest is Fixture {
    DisputeHandler internal handler;

    function setUp() public override {
        super.setUp();
        uint256[2] memory keys = [_nodeKey(0), _nodeKey(1)];
        handler = new DisputeHandler(disputes, registry, [nodes[0], nodes[1]], keys);
        _target(address(handler));
    }

    function test_theHandlerFindsALiar() public {
        handler.sign(1, 0, "one");
        handler.sign(1, 0, "other");
        handler.sign(0, 0, "one");
        handler.accuse(1, 0, 2);
        handler.accuse(0, 0, 1);
        _eq(handler.cases(1), 0);
        handler.accuse(1, 0, 1);
        _eq(handler.cases(1), 1);
        _eq(handler.slashed(1), NODE_STAKE / 2);
    }

    function invariant_whoSignsOnceIsNeverSlashed() public view {
        _eq(handler.slashed(0), 0);
        _eq(vault.stakeOf(nodes[0]).active, NODE_STAKE);
        _true(committee.standingOf(nodes[0]) != 0, "and takes sessions");
    }

    function invariant_slashesSumUpToNoMoreThanTheStake() public view {
        _eq(vault.stakeOf(nodes[1]).active + handler.slashed(1), NODE_STAKE);
        // One case for each of the four jobs, at most.
        _atMost(handler.cases(1), 4);
    }
}
