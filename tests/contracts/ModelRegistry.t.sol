// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {ModelRegistry} from "../../contracts/ModelRegistry.sol";
import {
    IModelRegistry,
    IModelRegistryErrors,
    IModelRegistryEvents,
    IModelRegistryTypes
} from "../../contracts/interfaces/IModelRegistry.sol";
import {TestBase} from "./Vm.sol";

contract ModelRegistryTest is TestBase {
    ModelRegistry internal models;

    function setUp() public {
        models = new ModelRegistry();
    }

    function _p() internal pure returns (IModelRegistryTypes.ModelParams memory) {
        return IModelRegistryTypes.ModelParams(keccak256("w"), 12, 768, 5_000, 1, 0, 0, 0);
    }

    function _rejects(IModelRegistryTypes.ModelParams memory p, bytes memory error_) internal {
        vm.expectRevert(error_);
        models.register("x", p, 0, "u");
    }

    function test_register_storesAndDerivesTheId() public {
        bytes32 id = models.register("salt", _p(), "manifest", "https://example.org");
        _eq32(id, keccak256(abi.encode(address(this), bytes32("salt"))));
        IModelRegistryTypes.Model memory m = models.modelOf(id);
        _eq32(m.weightsRoot, keccak256("w"));
        _eqAddress(m.owner, address(this));
        _eq(m.layers, 12);
        _eq(m.hidden, 768);
        _eq(m.rankBps, 5_000);
        _eq(m.quant, 1);
        _eq(m.profile, 0);
        _eq(m.status, 1);
    }

    function test_register_exact_storesTheConstants() public {
        IModelRegistryTypes.ModelParams memory p = _p();
        p.profile = 1;
        p.constantsHash = keccak256("tables");
        p.certificateHash = keccak256("certificate");
        vm.expectEmit(true, true, true, true, address(models));
        emit IModelRegistryEvents.ModelRegistered(
            keccak256(abi.encode(address(this), bytes32("salt"))),
            address(this),
            p.weightsRoot,
            "manifest",
            p.layers,
            p.hidden,
            p.rankBps,
            p.quant,
            1,
            p.constantsHash,
            p.certificateHash,
            "u"
        );
        bytes32 id = models.register("salt", p, "manifest", "u");
        _eq(models.modelOf(id).profile, 1);
        _eq32(models.modelOf(id).constantsHash, keccak256("tables"));
        models.deprecate(id);
        _eq32(models.modelOf(id).constantsHash, keccak256("tables"));
    }

    function testFuzz_constantsAreThoseOfTheExactProfile(uint8 profile, bytes32 constantsHash) public {
        IModelRegistryTypes.ModelParams memory p = _p();
        (p.profile, p.constantsHash) = (profile, constantsHash);
        if (profile > 1) {
            _rejects(p, abi.encodeWithSelector(IModelRegistryErrors.UnknownProfile.selector, profile));
        } else if ((profile == 1) != (constantsHash != 0)) {
            _rejects(
                p,
                abi.encodeWithSelector(IModelRegistryErrors.ConstantsDoNotFitProfile.selector, profile, constantsHash)
            );
        } else {
            _eq32(models.modelOf(models.register("x", p, 0, "u")).constantsHash, constantsHash);
        }
    }

    function test_RevertWhen_theProfileAndItsConstantsDoNotFit() public {
        IModelRegistryTypes.ModelParams memory p = _p();
        p.profile = 2;
        _rejects(p, abi.encodeWithSelector(IModelRegistryErrors.UnknownProfile.selector, 2));
        p.profile = 1;
        _rejects(p, abi.encodeWithSelector(IModelRegistryErrors.ConstantsDoNotFitProfile.selector, 1, bytes32(0)));
        (p.profile, p.constantsHash) = (0, bytes32("c"));
        _rejects(p, abi.encodeWithSelector(IModelRegistryErrors.ConstantsDoNotFitProfile.selector, 0, bytes32("c")));
    }

    function test_ids_cannotCollideOrBeOverwritten() public {
        bytes32 id = models.register("salt", _p(), "manifest", "u");
        vm.expectRevert(abi.encodeWithSelector(IModelRegistryErrors.ModelExists.selector, id));
        models.register("salt", _p(), "other", "u");
        vm.prank(address(0xB));
        bytes32 other = models.register("salt", _p(), "manifest", "u");
        _true(other != id, "another owner gets another id");
        models.deprecate(id);
        vm.expectRevert(abi.encodeWithSelector(IModelRegistryErrors.ModelExists.selector, id));
        models.register("salt", _p(), "manifest", "u");
    }

    function test_RevertWhen_paramsAreOutOfBounds() public {
        IModelRegistryTypes.ModelParams memory p = _p();
        p.weightsRoot = 0;
        _rejects(p, abi.encodeWithSelector(IModelRegistryErrors.EmptyWeightsRoot.selector));
        p = _p();
        p.layers = 0;
        _rejects(p, abi.encodeWithSelector(IModelRegistryErrors.LayersOutOfBounds.selector, 0, 1, 0xFFFC));
        p.layers = 0xFFFD;
        _rejects(p, abi.encodeWithSelector(IModelRegistryErrors.LayersOutOfBounds.selector, 0xFFFD, 1, 0xFFFC));
        p = _p();
        p.hidden = 0;
        _rejects(p, abi.encodeWithSelector(IModelRegistryErrors.ZeroHidden.selector));
        p = _p();
        p.rankBps = 10_001;
        _rejects(p, abi.encodeWithSelector(IModelRegistryErrors.RankOutOfBounds.selector, 10_001, 10_000));
        vm.expectRevert(abi.encodeWithSelector(IModelRegistryErrors.UriTooLong.selector, 2_049, 2_048));
        models.register("x", _p(), 0, string(new bytes(2_049)));
    }

    function test_deprecate() public {
        bytes32 id = models.register("salt", _p(), "manifest", "u");
        vm.expectRevert(
            abi.encodeWithSelector(IModelRegistryErrors.NotModelOwner.selector, address(this), address(0xB))
        );
        vm.prank(address(0xB));
        models.deprecate(id);
        models.deprecate(id);
        (uint16 layers, uint8 status) = models.shapeOf(id);
        _eq(layers, 12);
        _eq(status, 2);
        vm.expectRevert(abi.encodeWithSelector(IModelRegistryErrors.ModelDeprecatedAlready.selector, id));
        models.deprecate(id);
        vm.expectRevert(abi.encodeWithSelector(IModelRegistryErrors.UnknownModel.selector, bytes32("?")));
        models.deprecate("?");
    }

    function testFuzz_merkle_verifiesItsLeavesOnly(bytes32 a, bytes32 b, bytes32 c, bytes32 stranger) public {
        bytes32[3] memory leaves = [_leaf(a), _leaf(b), _leaf(c)];
        bytes32 ab = _pair(leaves[0], leaves[1]);
        IModelRegistryTypes.ModelParams memory p = _p();
        p.weightsRoot = _pair(ab, leaves[2]);
        bytes32 id = models.register("tree", p, 0, "u");
        bytes32[] memory proof = new bytes32[](2);
        (proof[0], proof[1]) = (leaves[1], leaves[2]);
        _true(models.verifyTensor(id, leaves[0], proof), "leaf");
        bytes32 foreign = _leaf(keccak256(abi.encode(stranger)));
        _true(!models.verifyTensor(id, foreign, proof), "stranger");
        _true(!models.verifyTensor("?", leaves[0], proof), "unknown model");
    }

    function test_merkle_isDomainSeparated() public {
        // A leaf is hashed twice, so the preimage of an inner node is not a leaf of anything.
        bytes32 l = _leaf("l");
        bytes32 r = _leaf("r");
        IModelRegistryTypes.ModelParams memory p = _p();
        p.weightsRoot = _pair(l, r);
        bytes32 id = models.register("tree", p, 0, "u");
        bytes memory inner = l < r ? abi.encode(l, r) : abi.encode(r, l);
        bytes32 forged = keccak256(abi.encode(keccak256(inner)));
        _true(!models.verifyTensor(id, forged, new bytes32[](0)), "inner node taken for a leaf");
    }

    function test_verifyTensor_unknownModelHasNoRoot() public view {
        _true(!models.verifyTensor("?", 0, new bytes32[](0)), "root 0 proves nothing");
    }

    function _leaf(bytes32 x) private pure returns (bytes32) {
        return keccak256(abi.encode(keccak256(abi.encode(x))));
    }

    function _pair(bytes32 a, bytes32 b) private pure returns (bytes32) {
        return a < b ? keccak256(abi.encode(a, b)) : keccak256(abi.encode(b, a));
    }
}
