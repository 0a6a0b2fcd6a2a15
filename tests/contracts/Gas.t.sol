// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {IModelRegistryTypes} from "../../contracts/interfaces/IModelRegistry.sol";
import {ISessionEscrowTypes} from "../../contracts/interfaces/ISessionEscrow.sol";
import {Fixture} from "./Fixture.sol";

/// @notice Gas of whole transactions, 21000 and calldata included, against what we allow. `forge test --match-contract
/// GasTest -vv` prints the figures.
contract GasTest is Fixture {
    event Gas(string what, uint256 used, uint256 budget);

    function _spent(string memory what, uint256 budget) internal {
        uint256 used = vm.lastCallGas().gasTotalUsed;
        emit Gas(what, used, budget);
        _atMost(used, budget);
    }

    /// @dev Four nodes with a layer each, for the routes that the budgets are about.
    function _fourNodes() internal returns (ISessionEscrowTypes.SessionKey memory key) {
        modelId = models.register("four", _modelParams(4), 0, "u");
        delete nodes;
        key = _key(1);
        key.maxPricePerKTok = 4_000;
        key.nodes = new address[](4);
        key.shares = new uint16[](4);
        for (uint16 i; i < 4; ++i) {
            address node = vm.addr(_nodeKey(10 + i));
            _stake(node, NODE_STAKE);
            _register(node, i, i + 1);
            nodes.push(node);
            key.nodes[i] = node;
            key.shares[i] = 2_500;
        }
        key.modelId = modelId;
    }

    function _closeTogether(ISessionEscrowTypes.SessionKey memory key, uint256 cumulative) internal {
        ISessionEscrowTypes.Voucher memory v =
            ISessionEscrowTypes.Voucher(escrow.sessionIdOf(key), uint128(cumulative), 1_000, "receipts");
        bytes32 digest = escrow.cooperativeCloseDigest(v);
        bytes[] memory sigs = new bytes[](4);
        for (uint256 i; i < 4; ++i) {
            sigs[i] = _sign(_nodeKey(10 + i), digest);
        }
        escrow.closeCooperative(key, v, _sign(CLIENT_KEY, digest), sigs);
    }

    function test_gas_staking() public {
        address op = address(0x0901);
        token.transfer(op, 1_000);
        vm.prank(op);
        token.approve(address(vault), type(uint256).max);
        vm.prank(op);
        vault.stake(100);
        _spent("stake, new operator", 75_000);
        vm.prank(op);
        vault.stake(100);
        _spent("stake, again", 58_000);
        vm.prank(op);
        vault.unbond(100);
        _spent("unbond", 37_000);
        vm.warp(_now() + UNBONDING);
        vm.prank(op);
        vault.withdraw();
        _spent("withdraw", 54_000);
    }

    function test_gas_registries() public {
        models.register("gas", _modelParams(4), "m", "https://models.example.org/gas/manifest.json");
        _spent("register model", 82_000);
        IModelRegistryTypes.ModelParams memory exact = _modelParams(4);
        (exact.profile, exact.constantsHash, exact.certificateHash) = (1, keccak256("c"), keccak256("q"));
        models.register("exact", exact, "m", "https://models.example.org/gas/manifest.json");
        _spent("register exact model", 104_000);
        address op = address(0x0901);
        _stake(op, SEAT_STAKE);
        _register(op, 0, 4);
        _spent("register node", 138_000);
        vm.prank(op);
        registry.setEndpoint("https://node2.example.org:8443");
        _spent("set endpoint", 28_000);
        vm.prank(op);
        registry.update(1_000, hot);
        _spent("change the key", 78_000);
        vm.prank(op);
        seats.takeSeat();
        _spent("take a seat", 92_000);
        vm.prank(op);
        batches.post(_epoch(), 0, "root", 1_024);
        _spent("post a batch, cold slot", 58_000);
        for (uint64 i = 1; i < 64; ++i) {
            vm.prank(op);
            batches.post(_epoch(), i, "root", 1_024);
        }
        vm.warp(_now() + WINDOW);
        vm.prank(op);
        batches.post(_epoch(), 64, "root", 1_024);
        _spent("post a batch, reused slot", 44_000);
    }

    function test_gas_session() public {
        ISessionEscrowTypes.SessionKey memory key = _fourNodes();
        _at(2, 0);
        vm.prank(client);
        escrow.deposit(1 ether);
        _spent("deposit, again", 52_000);
        _open(key, 5 ether);
        _spent("open, 4 nodes", 164_000);
        _settle(key, 1 ether);
        _spent("settle, 4 nodes, first ever", 175_000);
        _settle(key, 2 ether);
        _spent("settle, 4 nodes, same epoch", 85_000);
        _at(3, 0);
        _settle(key, 3 ether);
        _spent("settle, 4 nodes, first in an epoch", 109_000);
        vm.prank(client);
        escrow.requestClose(key);
        _spent("request a close, 4 nodes", 39_000);
        vm.warp(_now() + GRACE);
        escrow.finalizeClose(key);
        _spent("close, 4 nodes", 44_000);
        vm.prank(nodes[0]);
        escrow.withdrawFees(nodes[0]);
        _spent("withdraw fees, new holder", 67_000);
        key.nonce = 2;
        key.expiry = uint40(_now() + EPOCH);
        _open(key, 5 ether);
        _closeTogether(key, 4 ether);
        _spent("close together, 4 nodes", 157_000);
    }

    function test_gas_epoch() public {
        ISessionEscrowTypes.SessionKey memory key = _fourNodes();
        _at(2, 0);
        _open(key, 5 ether);
        _settle(key, 4 ether);
        _at(3, 0);
        seats.armSeed(2);
        _spent("arm a seed", 50_000);
        vm.roll(vm.getBlockNumber() + 3);
        seats.fixSeed(2);
        _spent("fix a seed", 63_000);
        Report[] memory r = _reports(2, nodes, _verdict(10, 0, false));
        for (uint256 i; i < r.length; ++i) {
            _commit(2, r[i]);
        }
        _spent("commit", 62_000);
        _at(3, 1);
        for (uint256 i; i < r.length; ++i) {
            _reveal(2, r[i]);
        }
        _spent("reveal, last of the committees", 86_000 + 15_000 * r[r.length - 1].nodes.length);
        _at(3, 2);
        committee.finalize(2, nodes);
        _spent("finalize, 4 new nodes", 227_000);
        committee.judgeVerifier(2, r[0].verifier, r[0].nodes);
        _spent("judge a verifier, first", 75_000 + 31_000 * r[0].nodes.length);
        pool.weigh(2, nodes);
        _spent("weigh 4 nodes, new slots", 262_000);
        _at(4, 0);
        vm.prank(nodes[0]);
        pool.claim(_one(uint64(2)));
        _spent("claim, new holder", 82_000);
    }

    /// @notice What a severe failure adds: the slash and the exclusion.
    function test_gas_failure() public {
        _at(2, 0);
        _fixSeed(2);
        Report[] memory r = _reports(2, _one(nodes[0]), _verdict(10, 4, true));
        _submit(2, r);
        committee.finalize(2, _one(nodes[0]));
        _spent("finalize a node that failed severely", 174_000);
        committee.judgeVerifier(2, r[0].verifier, r[0].nodes);
        _spent("judge a verifier that failed a node, first", 127_000);
    }

    /// @notice What tap digests add: a word for each node and eight members, paid by the first to reveal.
    function test_gas_taps() public {
        _fourNodes();
        _at(2, 0);
        _fixSeed(2);
        Report[] memory r = _reports(2, nodes, _verdict(10, 0, false));
        for (uint256 i; i < r.length; ++i) {
            _commit(2, _tapped(r[i], keccak256("tap")));
        }
        _at(3, 1);
        for (uint256 i; i < r.length; ++i) {
            _reveal(2, r[i]);
        }
        _spent("reveal with taps, last of the committees", 86_000 + 21_000 * r[r.length - 1].nodes.length);
        _at(3, 2);
        committee.finalize(2, nodes);
        committee.judgeVerifier(2, r[0].verifier, r[0].nodes);
        _spent("judge a verifier with taps, first", 79_000 + 32_000 * r[0].nodes.length);
    }
}
