// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {CommitmentLog} from "../../contracts/CommitmentLog.sol";
import {DisputeGame} from "../../contracts/DisputeGame.sol";
import {EfedToken} from "../../contracts/EfedToken.sol";
import {ModelRegistry} from "../../contracts/ModelRegistry.sol";
import {NodeRegistry} from "../../contracts/NodeRegistry.sol";
import {RewardPool} from "../../contracts/RewardPool.sol";
import {SeatRegistry} from "../../contracts/SeatRegistry.sol";
import {SessionEscrow} from "../../contracts/SessionEscrow.sol";
import {StakeVault} from "../../contracts/StakeVault.sol";
import {VerifierCommittee} from "../../contracts/VerifierCommittee.sol";
import {IModelRegistryTypes} from "../../contracts/interfaces/IModelRegistry.sol";
import {IRewardPoolTypes} from "../../contracts/interfaces/IRewardPool.sol";
import {ISeatRegistryTypes} from "../../contracts/interfaces/ISeatRegistry.sol";
import {ISessionEscrowTypes} from "../../contracts/interfaces/ISessionEscrow.sol";
import {IVerifierCommitteeTypes} from "../../contracts/interfaces/IVerifierCommittee.sol";
import {TestBase} from "./Vm.sol";

/// @notice The whole network on a chain: one model of four layers, two nodes with half of it each, five verifiers with
/// seats from epoch 2 on, a client with a balance. The test contract is the admin and the guardian.
abstract contract Fixture is TestBase {
    struct Report {
        address verifier;
        address[] nodes;
        uint16[] verdicts;
        bytes32[] taps;
    }

    uint64 internal constant GENESIS = 1_700_000_000;
    uint32 internal constant EPOCH = 90;
    uint40 internal constant UNBONDING = 1_000;
    uint40 internal constant GRACE = 40;
    uint40 internal constant WINDOW = 200;
    uint16 internal constant FEE_BPS = 300;
    uint16 internal constant SLASH_BPS = 5_000;
    uint16 internal constant REWARD_BPS = 3_000;
    uint96 internal constant MIN_STAKE = 10 ether;
    uint96 internal constant SEAT_STAKE = 100 ether;
    uint256 internal constant NODE_STAKE = 100 ether;
    uint256 internal constant CAP = 1e27;
    uint256 internal constant CLIENT_KEY = 0xC1;
    uint256 internal constant HOT_KEY = 0x407;
    bytes32 internal constant SALT = keccak256("salt");
    address internal constant TREASURY = address(0x7EA5);

    EfedToken internal token;
    StakeVault internal vault;
    ModelRegistry internal models;
    NodeRegistry internal registry;
    SeatRegistry internal seats;
    VerifierCommittee internal committee;
    SessionEscrow internal escrow;
    CommitmentLog internal batches;
    RewardPool internal pool;
    DisputeGame internal disputes;

    bytes32 internal modelId;
    address internal client;
    address internal hot;
    address[] internal nodes;
    address[] internal verifiers;

    function setUp() public virtual {
        vm.warp(GENESIS);
        vm.roll(1_000);
        client = vm.addr(CLIENT_KEY);
        hot = vm.addr(HOT_KEY);
        _deploy();
        modelId = models.register("model", _modelParams(4), keccak256("manifest"), "https://example.org/model");
        for (uint256 i; i < 2; ++i) {
            nodes.push(vm.addr(_nodeKey(i)));
            _stake(nodes[i], NODE_STAKE);
            _register(nodes[i], uint16(2 * i), uint16(2 * i + 2));
        }
        for (uint256 i; i < 5; ++i) {
            verifiers.push(vm.addr(0xE00 + i));
            _seat(verifiers[i]);
        }
        token.transfer(client, 1e24);
        vm.prank(client);
        token.approve(address(escrow), type(uint256).max);
        vm.prank(client);
        escrow.deposit(1e23);
    }

    // ------------------------------------------------------------------------------------------------------ set-up

    function _deploy() internal {
        token = new EfedToken(address(this), CAP, address(this), 1e26);
        vault = new StakeVault(token, UNBONDING, address(this));
        models = new ModelRegistry();
        registry = new NodeRegistry(vault, models, GENESIS, EPOCH, MIN_STAKE);
        seats = new SeatRegistry(vault, GENESIS, EPOCH, _terms(), address(this));
        committee = new VerifierCommittee(vault, registry, seats, GENESIS, EPOCH, _params(), address(this));
        escrow = new SessionEscrow(token, registry, committee, GENESIS, EPOCH, FEE_BPS, GRACE, address(this));
        batches = new CommitmentLog(registry, GENESIS, EPOCH, WINDOW);
        pool = new RewardPool(token, committee, escrow, vault, GENESIS, EPOCH, _poolParams(), TREASURY);
        disputes = new DisputeGame(vault, registry, committee, batches, SLASH_BPS, REWARD_BPS);
        seats.grantRole(seats.COMMITTEE_ROLE(), address(committee));
        vault.grantRole(vault.SLASHER_ROLE(), address(committee));
        token.grantRole(token.MINTER_ROLE(), address(pool));
        vault.grantRole(vault.SLASHER_ROLE(), address(disputes));
        committee.grantRole(committee.DISPUTE_ROLE(), address(disputes));
    }

    function _params() internal pure virtual returns (IVerifierCommitteeTypes.Params memory) {
        return IVerifierCommitteeTypes.Params({
            theta: 300_000,
            reentry: 400_000,
            priorMass: 2e6,
            pMin: 100_000,
            pMax: 500_000,
            slashFirstBps: 2_000,
            slashRepeatBps: 10_000,
            noRevealBps: 50,
            deviationBps: 200,
            probationCapBps: 1_000,
            exclusionEpochs: 20
        });
    }

    function _terms() internal pure virtual returns (ISeatRegistryTypes.Terms memory) {
        return ISeatRegistryTypes.Terms({committeeSize: 3, seatStake: SEAT_STAKE});
    }

    function _poolParams() internal pure virtual returns (IRewardPoolTypes.Params memory) {
        return IRewardPoolTypes.Params({
            e0: 100 ether,
            halvingEpochs: 100,
            phiBps: 10_000,
            serversBps: 7_000,
            verifiersBps: 2_000,
            stakeCapBps: 10_000
        });
    }

    function _modelParams(uint16 layers) internal pure returns (IModelRegistryTypes.ModelParams memory) {
        return IModelRegistryTypes.ModelParams({
            weightsRoot: keccak256("weights"),
            layers: layers,
            hidden: 64,
            rankBps: 10_000,
            quant: 0,
            profile: 0,
            constantsHash: 0,
            certificateHash: 0
        });
    }

    function _nodeKey(uint256 i) internal pure returns (uint256) {
        return 0xA00 + i;
    }

    function _stake(address who, uint256 amount) internal {
        token.transfer(who, amount);
        vm.prank(who);
        token.approve(address(vault), type(uint256).max);
        vm.prank(who);
        vault.stake(amount);
    }

    function _register(address node, uint16 lo, uint16 hi) internal {
        vm.prank(node);
        registry.register(modelId, lo, hi, 1_000, node, keccak256("shard"), "https://node.example.org:8443");
    }

    function _seat(address verifier) internal {
        _stake(verifier, SEAT_STAKE);
        vm.prank(verifier);
        seats.takeSeat();
    }

    // ------------------------------------------------------------------------------------------------------- time

    function _now() internal view returns (uint256) {
        return vm.getBlockTimestamp();
    }

    /// @dev The current epoch, without a call that a prank or an expected revert would meet.
    function _epoch() internal view returns (uint64) {
        return uint64((_now() - GENESIS) / EPOCH + 1);
    }

    /// @dev First second of phase `p` of epoch `e`.
    function _at(uint64 e, uint256 p) internal {
        vm.warp(GENESIS + (uint256(e) - 1) * EPOCH + (p * EPOCH) / 3);
    }

    function _fixSeed(uint64 e) internal {
        _at(e + 1, 0);
        seats.armSeed(e);
        vm.roll(vm.getBlockNumber() + 3);
        seats.fixSeed(e);
    }

    // --------------------------------------------------------------------------------------------------- verdicts

    function _verdict(uint256 passed, uint256 failed, bool severe) internal pure returns (uint16) {
        return uint16((severe ? 1 << 15 : 0) | (failed << 8) | passed);
    }

    /// @dev Reports of all drawn verifiers, all with the same verdict on every node.
    function _reports(uint64 e, address[] memory list, uint16 verdict) internal view returns (Report[] memory r) {
        r = new Report[](verifiers.length);
        uint256 count;
        for (uint256 v; v < verifiers.length; ++v) {
            Report memory one = _report(e, verifiers[v], list, verdict);
            if (one.nodes.length != 0) r[count++] = one;
        }
        assembly ("memory-safe") {
            mstore(r, count)
        }
    }

    function _report(uint64 e, address verifier, address[] memory list, uint16 verdict)
        internal
        view
        returns (Report memory r)
    {
        r = _plain(verifier, new address[](list.length), new uint16[](list.length));
        uint256 count;
        for (uint256 i; i < list.length; ++i) {
            if (!seats.isDrawn(e, list[i], verifier)) continue;
            r.nodes[count] = list[i];
            r.verdicts[count++] = verdict;
        }
        (address[] memory n, uint16[] memory w, bytes32[] memory t) = (r.nodes, r.verdicts, r.taps);
        assembly ("memory-safe") {
            mstore(n, count)
            mstore(w, count)
            mstore(t, count)
        }
    }

    /// @dev A report without tap digests, as of a model in the float profile.
    function _plain(address verifier, address[] memory list, uint16[] memory verdicts)
        internal
        pure
        returns (Report memory)
    {
        return Report(verifier, list, verdicts, new bytes32[](list.length));
    }

    /// @dev The same digest for every node of a report.
    function _tapped(Report memory r, bytes32 digest) internal pure returns (Report memory) {
        for (uint256 i; i < r.taps.length; ++i) {
            r.taps[i] = digest;
        }
        return r;
    }

    function _commitment(uint64 e, Report memory r) internal view returns (bytes32) {
        return keccak256(
            abi.encode(
                block.chainid,
                address(committee),
                e,
                r.verifier,
                r.nodes,
                r.verdicts,
                r.taps,
                new bytes32[](r.nodes.length),
                SALT
            )
        );
    }

    function _commit(uint64 e, Report memory r) internal {
        bytes32 h = _commitment(e, r);
        vm.prank(r.verifier);
        committee.commit(e, h);
    }

    function _reveal(uint64 e, Report memory r) internal {
        vm.prank(r.verifier);
        committee.reveal(e, r.nodes, r.verdicts, r.taps, new bytes32[](r.nodes.length), SALT);
    }

    /// @dev Commits and reveals, and ends in the tally phase.
    function _submit(uint64 e, Report[] memory r) internal {
        _at(e + 1, 0);
        for (uint256 i; i < r.length; ++i) {
            _commit(e, r[i]);
        }
        _at(e + 1, 1);
        for (uint256 i; i < r.length; ++i) {
            _reveal(e, r[i]);
        }
        _at(e + 1, 2);
    }

    /// @dev Verifiers for a committee of the greatest size, beside the five of the set-up.
    function _seatFifteen() internal {
        for (uint256 i; i < 10; ++i) {
            verifiers.push(vm.addr(0xF00 + i));
            _seat(verifiers[5 + i]);
        }
    }

    /// @dev Seed to final verdict, unanimous.
    function _judge(uint64 e, address[] memory list, uint16 verdict) internal {
        _fixSeed(e);
        _submit(e, _reports(e, list, verdict));
        committee.finalize(e, list);
    }

    function _one(address a) internal pure returns (address[] memory list) {
        list = new address[](1);
        list[0] = a;
    }

    function _one(uint64 e) internal pure returns (uint64[] memory list) {
        list = new uint64[](1);
        list[0] = e;
    }

    // --------------------------------------------------------------------------------------------------- sessions

    function _key(uint64 nonce) internal view returns (ISessionEscrowTypes.SessionKey memory key) {
        key.client = client;
        key.signer = hot;
        key.modelId = modelId;
        key.nonce = nonce;
        key.expiry = uint40(_now() + 10 * EPOCH);
        key.maxPricePerKTok = 2_000;
        key.nodes = nodes;
        key.shares = new uint16[](2);
        key.shares[0] = 3_333;
        key.shares[1] = 6_667;
    }

    function _open(ISessionEscrowTypes.SessionKey memory key, uint256 amount) internal returns (bytes32 id) {
        vm.prank(key.client);
        id = escrow.open(key, amount);
    }

    function _voucher(bytes32 id, uint256 cumulative)
        internal
        view
        returns (ISessionEscrowTypes.Voucher memory v, bytes memory sig)
    {
        v = ISessionEscrowTypes.Voucher(id, uint128(cumulative), 1_000, keccak256("receipts"));
        sig = _sign(HOT_KEY, escrow.voucherDigest(v));
    }

    function _settle(ISessionEscrowTypes.SessionKey memory key, uint256 cumulative) internal {
        (ISessionEscrowTypes.Voucher memory v, bytes memory sig) = _voucher(escrow.sessionIdOf(key), cumulative);
        escrow.settle(key, v, sig);
    }

    function _sign(uint256 key, bytes32 digest) internal pure returns (bytes memory) {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, digest);
        return abi.encodePacked(r, s, v);
    }

    /// @dev Ten full audits passed by both nodes: trust far above theta.
    function _trusted(uint64 e) internal {
        _judge(e, nodes, _verdict(100, 0, false));
    }
}
