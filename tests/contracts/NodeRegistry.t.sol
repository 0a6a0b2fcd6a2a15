// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {INodeRegistryErrors, INodeRegistryTypes} from "../../contracts/interfaces/INodeRegistry.sol";
import {Fixture} from "./Fixture.sol";

contract NodeRegistryTest is Fixture {
    address internal fresh = address(0xF4E5);

    function _tryRegister(uint16 lo, uint16 hi, address signer, string memory endpoint, bytes memory error_) internal {
        vm.expectRevert(error_);
        vm.prank(fresh);
        registry.register(modelId, lo, hi, 1, signer, 0, endpoint);
    }

    function test_register_isVisible() public view {
        INodeRegistryTypes.NodeView memory n = registry.nodeOf(nodes[1]);
        _eqAddress(n.signer, nodes[1]);
        _eq(n.lo, 2);
        _eq(n.hi, 4);
        _eq(n.pricePerKTok, 1_000);
        _eq(n.status, 1);
        _eq32(n.modelId, modelId);
        _eq32(n.shardRoot, keccak256("shard"));
        _eq(registry.nodeOf(fresh).status, 0);
    }

    function test_RevertWhen_registeringBadly() public {
        _tryRegister(2, 2, fresh, "e", abi.encodeWithSelector(INodeRegistryErrors.BadLayerRange.selector, 2, 2, 4));
        _tryRegister(0, 5, fresh, "e", abi.encodeWithSelector(INodeRegistryErrors.BadLayerRange.selector, 0, 5, 4));
        _tryRegister(
            0, 4, fresh, "e", abi.encodeWithSelector(INodeRegistryErrors.StakeTooLow.selector, fresh, 40 ether, 0)
        );
        _tryRegister(
            0, 4, fresh, "", abi.encodeWithSelector(INodeRegistryErrors.EndpointLengthOutOfBounds.selector, 0, 256)
        );
        _tryRegister(
            0,
            4,
            fresh,
            string(new bytes(257)),
            abi.encodeWithSelector(INodeRegistryErrors.EndpointLengthOutOfBounds.selector, 257, 256)
        );
        _stake(fresh, 40 ether);
        _tryRegister(0, 4, address(0), "e", abi.encodeWithSelector(INodeRegistryErrors.InvalidSigner.selector));
        models.deprecate(modelId);
        _tryRegister(0, 4, fresh, "e", abi.encodeWithSelector(INodeRegistryErrors.ModelNotActive.selector, modelId));
    }

    function test_RevertWhen_registeringTwice() public {
        vm.expectRevert(abi.encodeWithSelector(INodeRegistryErrors.AlreadyRegistered.selector, nodes[0]));
        _register(nodes[0], 0, 2);
    }

    function test_unbondingStakeDoesNotCount() public {
        _stake(fresh, 40 ether);
        vm.prank(fresh);
        vault.unbond(1);
        _tryRegister(
            0,
            4,
            fresh,
            "e",
            abi.encodeWithSelector(INodeRegistryErrors.StakeTooLow.selector, fresh, 40 ether, 40 ether - 1)
        );
    }

    function test_update_isDueNextEpoch() public {
        vm.prank(nodes[0]);
        registry.update(5, address(0x51));
        _eq(registry.nodeOf(nodes[0]).pricePerKTok, 1_000);
        _eq(registry.checkRoute(modelId, nodes), 2_000);
        _at(2, 0);
        _eq(registry.nodeOf(nodes[0]).pricePerKTok, 5);
        _eqAddress(registry.nodeOf(nodes[0]).signer, address(0x51));
        _eq(registry.checkRoute(modelId, nodes), 1_005);
        vm.prank(nodes[0]);
        registry.update(6, address(0x52));
        _eq(registry.nodeOf(nodes[0]).pricePerKTok, 5);
        _at(3, 0);
        _eq(registry.nodeOf(nodes[0]).pricePerKTok, 6);
    }

    function test_update_replacesOneThatIsNotDue() public {
        vm.startPrank(nodes[0]);
        registry.update(5, nodes[0]);
        registry.update(7, nodes[0]);
        vm.stopPrank();
        _at(2, 0);
        _eq(registry.nodeOf(nodes[0]).pricePerKTok, 7);
    }

    function test_register_afterRetireForgetsThePendingUpdate() public {
        vm.startPrank(nodes[0]);
        registry.update(5, address(0x51));
        registry.retire();
        registry.register(modelId, 0, 4, 9, nodes[0], 0, "e");
        vm.stopPrank();
        _at(2, 0);
        INodeRegistryTypes.NodeView memory n = registry.nodeOf(nodes[0]);
        _eq(n.pricePerKTok, 9);
        _eq(n.hi, 4);
        _eqAddress(n.signer, nodes[0]);
    }

    function test_states() public {
        address n = nodes[0];
        vm.startPrank(n);
        registry.pause();
        _eq(registry.statusOf(n), 2);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistryErrors.WrongNodeStatus.selector, n, 2));
        registry.pause();
        registry.resume();
        _eq(registry.statusOf(n), 1);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistryErrors.WrongNodeStatus.selector, n, 1));
        registry.resume();
        registry.setEndpoint("https://new.example.org");
        registry.retire();
        _eq(registry.statusOf(n), 3);
        bytes memory retired = abi.encodeWithSelector(INodeRegistryErrors.WrongNodeStatus.selector, n, 3);
        vm.expectRevert(retired);
        registry.retire();
        vm.expectRevert(retired);
        registry.setEndpoint("e");
        vm.expectRevert(retired);
        registry.update(1, n);
        vm.stopPrank();
    }

    function test_RevertWhen_updatingWithoutSigner() public {
        vm.expectRevert(INodeRegistryErrors.InvalidSigner.selector);
        vm.prank(nodes[0]);
        registry.update(1, address(0));
    }

    function test_RevertWhen_endpointIsEmpty() public {
        vm.expectRevert(abi.encodeWithSelector(INodeRegistryErrors.EndpointLengthOutOfBounds.selector, 0, 256));
        vm.prank(nodes[0]);
        registry.setEndpoint("");
    }

    // ------------------------------------------------------------------------------------------------------ routes

    function _rejects(address[] memory route, bytes memory error_) internal {
        vm.expectRevert(error_);
        registry.checkRoute(modelId, route);
    }

    function test_checkRoute_sumsThePrices() public view {
        _eq(registry.checkRoute(modelId, nodes), 2_000);
    }

    function test_RevertWhen_routeHasAGapOrRepeats() public {
        address[] memory route = new address[](2);
        (route[0], route[1]) = (nodes[1], nodes[0]);
        _rejects(route, abi.encodeWithSelector(INodeRegistryErrors.RouteGap.selector, 0, 0, 2));
        (route[0], route[1]) = (nodes[0], nodes[0]);
        _rejects(route, abi.encodeWithSelector(INodeRegistryErrors.RouteGap.selector, 1, 2, 0));
        _rejects(_one(nodes[0]), abi.encodeWithSelector(INodeRegistryErrors.RouteIncomplete.selector, 2, 4));
    }

    function test_RevertWhen_routeIsEmptyOrTooLong() public {
        _rejects(new address[](0), abi.encodeWithSelector(INodeRegistryErrors.RouteLengthOutOfBounds.selector, 0, 32));
        _rejects(new address[](33), abi.encodeWithSelector(INodeRegistryErrors.RouteLengthOutOfBounds.selector, 33, 32));
    }

    function test_RevertWhen_aNodeCannotServe() public {
        vm.prank(nodes[1]);
        registry.pause();
        _rejects(nodes, abi.encodeWithSelector(INodeRegistryErrors.NodeNotActive.selector, nodes[1], 2));
        vm.prank(nodes[1]);
        registry.resume();
        vm.prank(nodes[1]);
        vault.unbond(NODE_STAKE - 20 ether + 1);
        _rejects(
            nodes, abi.encodeWithSelector(INodeRegistryErrors.StakeTooLow.selector, nodes[1], 20 ether, 20 ether - 1)
        );
        vm.prank(nodes[1]);
        vault.cancelUnbond();
        vault.grantRole(vault.SLASHER_ROLE(), address(this));
        uint40 until = uint40(_now() + 10);
        vault.jail(nodes[1], until);
        _rejects(nodes, abi.encodeWithSelector(INodeRegistryErrors.NodeJailed.selector, nodes[1], until));
        vm.warp(until);
        _eq(registry.checkRoute(modelId, nodes), 2_000);
    }

    function test_RevertWhen_modelsDiffer() public {
        bytes32 other = models.register("other", _modelParams(4), 0, "u");
        vm.expectRevert(abi.encodeWithSelector(INodeRegistryErrors.WrongModel.selector, nodes[0], other, modelId));
        registry.checkRoute(other, nodes);
        models.deprecate(modelId);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistryErrors.ModelNotActive.selector, modelId));
        registry.checkRoute(modelId, nodes);
    }
}
