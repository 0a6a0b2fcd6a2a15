// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {EfedToken} from "../../contracts/EfedToken.sol";
import {SessionEscrow} from "../../contracts/SessionEscrow.sol";
import {StakeVault} from "../../contracts/StakeVault.sol";
import {ISessionEscrowTypes} from "../../contracts/interfaces/ISessionEscrow.sol";
import {IStakeVaultTypes} from "../../contracts/interfaces/IStakeVault.sol";
import {Fixture} from "./Fixture.sol";
import {TestBase} from "./Vm.sol";

contract VaultHandler is TestBase {
    uint40 internal constant PERIOD = 7 days;

    StakeVault internal immutable vault;
    EfedToken internal immutable token;
    address[4] public operators = [address(0x11), address(0x12), address(0x13), address(0x14)];
    mapping(address operator => uint256) public locks;

    constructor(EfedToken token_, StakeVault vault_) {
        token = token_;
        vault = vault_;
    }

    function _operator(uint256 i) private view returns (address) {
        return operators[i % 4];
    }

    function stake(uint256 i, uint96 amount) external {
        address op = _operator(i);
        uint256 x = _bound(amount, 1, 1e20);
        if (token.balanceOf(op) < x) return;
        vm.prank(op);
        vault.stake(x);
    }

    function unbond(uint256 i, uint96 amount) external {
        address op = _operator(i);
        uint256 active = vault.stakeOf(op).active;
        if (active == 0) return;
        vm.prank(op);
        vault.unbond(_bound(amount, 1, active));
    }

    function cancelUnbond(uint256 i) external {
        address op = _operator(i);
        if (vault.stakeOf(op).unbonding == 0) return;
        vm.prank(op);
        vault.cancelUnbond();
    }

    function withdraw(uint256 i) external {
        address op = _operator(i);
        IStakeVaultTypes.Stake memory s = vault.stakeOf(op);
        if (s.unbonding == 0 || s.locks != 0 || vm.getBlockTimestamp() < s.readyAt) return;
        vm.prank(op);
        vault.withdraw();
    }

    function slash(uint256 i, uint256 amount, uint16 bps, bool small) external {
        address op = _operator(i);
        IStakeVaultTypes.Stake memory s = vault.stakeOf(op);
        uint256 total = uint256(s.active) + s.unbonding;
        if (small) amount %= 1e19;
        (uint256 slashed, uint256 reward) = vault.slash(op, amount, address(0xBEEF), bps % 5_001, "x");
        _eq(slashed, amount < total ? amount : total);
        _atMost(reward, slashed / 2);
    }

    function lock(uint256 i) external {
        address op = _operator(i);
        vault.lock(op);
        ++locks[op];
    }

    function unlock(uint256 i) external {
        address op = _operator(i);
        if (locks[op] == 0) return;
        vault.unlock(op);
        --locks[op];
    }

    function pass(uint32 seconds_) external {
        vm.warp(vm.getBlockTimestamp() + (seconds_ % (8 days)));
    }
}

/// @notice I1, I4, I7 of the vault.
contract VaultInvariantTest is TestBase {
    EfedToken internal token;
    StakeVault internal vault;
    VaultHandler internal handler;

    function setUp() public {
        token = new EfedToken(address(this), 1e30, address(this), 1e29);
        vault = new StakeVault(token, 7 days, address(this));
        handler = new VaultHandler(token, vault);
        vault.grantRole(vault.SLASHER_ROLE(), address(handler));
        for (uint256 i; i < 4; ++i) {
            address op = handler.operators(i);
            token.transfer(op, 1e24);
            vm.prank(op);
            token.approve(address(vault), type(uint256).max);
        }
        _target(address(handler));
    }

    function invariant_vaultHoldsExactlyTheStakes() public view {
        uint256 active;
        uint256 unbonding;
        for (uint256 i; i < 4; ++i) {
            IStakeVaultTypes.Stake memory s = vault.stakeOf(handler.operators(i));
            active += s.active;
            unbonding += s.unbonding;
            _eq(s.locks, handler.locks(handler.operators(i)));
            _true((s.readyAt == 0) == (s.unbonding == 0), "a clock runs for what leaves, and only then");
        }
        (uint128 totalActive, uint128 totalUnbonding) = vault.totals();
        _eq(active, totalActive);
        _eq(unbonding, totalUnbonding);
        _eq(active + unbonding, token.balanceOf(address(vault)));
    }
}

/// @notice Clients, nodes and strangers use the escrow in any order.
contract EscrowHandler is TestBase {
    struct Parties {
        address[2] clients;
        address[] nodes;
        bytes32 modelId;
        uint256 hotKey;
    }

    SessionEscrow internal immutable escrow;
    EfedToken internal immutable token;
    Parties internal parties;
    ISessionEscrowTypes.SessionKey[] internal keys;
    mapping(bytes32 session => uint256) public highest;
    uint256 public sessionCount;

    constructor(EfedToken token_, SessionEscrow escrow_, Parties memory parties_) {
        token = token_;
        escrow = escrow_;
        parties = parties_;
    }

    function idAt(uint256 i) public view returns (bytes32) {
        return escrow.sessionIdOf(keys[i]);
    }

    function deposit(uint256 who, uint96 amount) external {
        address client = parties.clients[who % 2];
        uint256 x = _bound(amount, 1, 1e20);
        if (token.balanceOf(client) < x) return;
        vm.prank(client);
        escrow.deposit(x);
    }

    function withdraw(uint256 who, uint96 amount) external {
        address client = parties.clients[who % 2];
        uint256 balance = escrow.balanceOf(client);
        if (balance == 0) return;
        vm.prank(client);
        escrow.withdraw(_bound(amount, 1, balance));
    }

    function open(uint256 who, uint96 amount, uint16 share, uint16 lifetime) external {
        address client = parties.clients[who % 2];
        uint256 balance = escrow.balanceOf(client);
        if (balance == 0 || sessionCount == 24) return;
        ISessionEscrowTypes.SessionKey memory key;
        key.client = client;
        key.signer = vm.addr(parties.hotKey);
        key.modelId = parties.modelId;
        key.nonce = uint64(sessionCount);
        key.expiry = uint40(vm.getBlockTimestamp() + 1 + lifetime);
        key.maxPricePerKTok = 2_000;
        key.nodes = parties.nodes;
        key.shares = new uint16[](2);
        key.shares[0] = uint16(share % 10_001);
        key.shares[1] = 10_000 - key.shares[0];
        // A node on probation with a stake of 100 tokens backs sessions of up to 10.
        uint256 most = balance < 10 ether ? balance : 10 ether;
        vm.prank(client);
        escrow.open(key, _bound(amount, 1, most));
        keys.push(key);
        ++sessionCount;
    }

    function topUp(uint256 i, uint96 amount) external {
        if (sessionCount == 0) return;
        ISessionEscrowTypes.SessionKey memory key = keys[i % sessionCount];
        ISessionEscrowTypes.Session memory s = escrow.sessionOf(escrow.sessionIdOf(key));
        uint256 balance = escrow.balanceOf(key.client);
        uint256 room = 10 ether - s.deposit;
        if (room > balance) room = balance;
        if (s.status != 1 || room == 0 || key.expiry <= vm.getBlockTimestamp()) return;
        vm.prank(key.client);
        escrow.topUp(key, _bound(amount, 1, room));
    }

    function settle(uint256 i, uint96 amount, bool andClose) external {
        if (sessionCount == 0) return;
        ISessionEscrowTypes.SessionKey memory key = keys[i % sessionCount];
        bytes32 id = escrow.sessionIdOf(key);
        ISessionEscrowTypes.Session memory s = escrow.sessionOf(id);
        if (s.status == 3 || s.settled == s.deposit || (andClose && s.status != 1)) return;
        ISessionEscrowTypes.Voucher memory v = ISessionEscrowTypes.Voucher(
            id, uint128(_bound(amount, uint256(s.settled) + 1, s.deposit)), uint64(amount), bytes32(i)
        );
        bytes memory sig = _sign(escrow.voucherDigest(v));
        if (andClose) {
            vm.prank(key.client);
            escrow.settleAndClose(key, v, sig);
        } else {
            escrow.settle(key, v, sig);
        }
        _true(v.cumulative > highest[id], "settled grows");
        highest[id] = v.cumulative;
    }

    function requestClose(uint256 i) external {
        if (sessionCount == 0) return;
        ISessionEscrowTypes.SessionKey memory key = keys[i % sessionCount];
        if (escrow.sessionOf(escrow.sessionIdOf(key)).status != 1) return;
        vm.prank(key.client);
        escrow.requestClose(key);
    }

    function finalizeClose(uint256 i) external {
        if (sessionCount == 0) return;
        ISessionEscrowTypes.SessionKey memory key = keys[i % sessionCount];
        ISessionEscrowTypes.Session memory s = escrow.sessionOf(escrow.sessionIdOf(key));
        uint256 closesAt = s.status == 2 ? s.closesAt : uint256(key.expiry) + escrow.grace();
        if (s.status == 3 || vm.getBlockTimestamp() < closesAt) return;
        escrow.finalizeClose(key);
    }

    function withdrawFees(uint256 i) external {
        address node = parties.nodes[i % 2];
        if (escrow.owedOf(node) == 0) return;
        vm.prank(node);
        escrow.withdrawFees(node);
    }

    function sweep() external {
        if (escrow.protocolFees() != 0) escrow.sweepProtocolFees();
    }

    function pass(uint16 seconds_) external {
        vm.warp(vm.getBlockTimestamp() + (seconds_ % 300));
    }

    function _sign(bytes32 digest) private view returns (bytes memory) {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(parties.hotKey, digest);
        return abi.encodePacked(r, s, v);
    }
}

/// @notice I2 and I3 of the escrow.
contract EscrowInvariantTest is Fixture {
    EscrowHandler internal handler;
    address internal second = address(0x2C);

    function setUp() public override {
        super.setUp();
        token.transfer(second, 1e22);
        vm.prank(second);
        token.approve(address(escrow), type(uint256).max);
        handler = new EscrowHandler(token, escrow, EscrowHandler.Parties([client, second], nodes, modelId, HOT_KEY));
        _target(address(handler));
    }

    function invariant_escrowHoldsExactlyWhatItOwes() public view {
        uint256 sum = escrow.balanceOf(client) + escrow.balanceOf(second) + escrow.owedOf(nodes[0])
            + escrow.owedOf(nodes[1]) + escrow.protocolFees();
        for (uint256 i; i < handler.sessionCount(); ++i) {
            ISessionEscrowTypes.Session memory s = escrow.sessionOf(handler.idAt(i));
            _atMost(s.settled, s.deposit);
            _eq(s.settled, handler.highest(handler.idAt(i)));
            if (s.status != 3) sum += uint256(s.deposit) - s.settled;
        }
        _eq(token.balanceOf(address(escrow)), sum);
    }
}
