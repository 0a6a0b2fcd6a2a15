// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {IAccessControl} from "@openzeppelin/contracts/access/IAccessControl.sol";
import {IERC20Errors} from "@openzeppelin/contracts/interfaces/draft-IERC6093.sol";
import {SessionEscrow} from "../../contracts/SessionEscrow.sol";
import {INodeRegistryErrors} from "../../contracts/interfaces/INodeRegistry.sol";
import {ISessionEscrowErrors, ISessionEscrowTypes} from "../../contracts/interfaces/ISessionEscrow.sol";
import {IVerifierCommitteeErrors} from "../../contracts/interfaces/IVerifierCommittee.sol";
import {Fixture} from "./Fixture.sol";

/// @notice A wallet that is a contract: whatever its owner signed is its own.
contract Wallet {
    address private immutable _owner;

    constructor(address owner) {
        _owner = owner;
    }

    function isValidSignature(bytes32 digest, bytes calldata sig) external view returns (bytes4) {
        (bytes32 r, bytes32 s, uint8 v) = (bytes32(sig[:32]), bytes32(sig[32:64]), uint8(sig[64]));
        return ecrecover(digest, v, r, s) == _owner ? this.isValidSignature.selector : bytes4(0);
    }
}

abstract contract EscrowFixture is Fixture {
    ISessionEscrowTypes.SessionKey internal key;
    bytes32 internal id;

    function setUp() public virtual override {
        super.setUp();
        key = _key(1);
    }

    function _status() internal view returns (uint8) {
        return escrow.sessionOf(id).status;
    }

    function _wrongStatus(uint8 status) internal {
        vm.expectRevert(abi.encodeWithSelector(ISessionEscrowErrors.WrongSessionStatus.selector, id, status));
    }

    /// @dev Everything the escrow owes is there.
    function _solvent() internal view {
        ISessionEscrowTypes.Session memory s = escrow.sessionOf(id);
        uint256 locked = s.status == 1 || s.status == 2 ? uint256(s.deposit) - s.settled : 0;
        _eq(
            token.balanceOf(address(escrow)),
            escrow.balanceOf(client) + locked + escrow.owedOf(nodes[0]) + escrow.owedOf(nodes[1])
                + escrow.protocolFees()
        );
    }
}

contract EscrowBalanceTest is EscrowFixture {
    function test_deposit_and_withdraw() public {
        vm.startPrank(client);
        escrow.withdraw(1e22);
        _eq(escrow.balanceOf(client), 9e22);
        vm.expectRevert(abi.encodeWithSelector(ISessionEscrowErrors.InsufficientBalance.selector, 9e22 + 1, 9e22));
        escrow.withdraw(9e22 + 1);
        vm.expectRevert(ISessionEscrowErrors.ZeroAmount.selector);
        escrow.withdraw(0);
        vm.expectRevert(ISessionEscrowErrors.ZeroAmount.selector);
        escrow.deposit(0);
        vm.stopPrank();
        _solvent();
    }

    function test_depositFor_creditsTheClient() public {
        token.approve(address(escrow), 5);
        escrow.depositFor(client, 5);
        _eq(escrow.balanceOf(client), 1e23 + 5);
        _eq(escrow.balanceOf(address(this)), 0);
    }

    function test_permit_frontRunDoesNotBlock() public {
        vm.prank(client);
        token.approve(address(escrow), 0);
        uint256 deadline = _now() + 1;
        bytes32 inner = keccak256(
            abi.encode(
                keccak256("Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)"),
                client,
                address(escrow),
                uint256(7),
                token.nonces(client),
                deadline
            )
        );
        (uint8 v, bytes32 r, bytes32 s) =
            vm.sign(CLIENT_KEY, keccak256(abi.encodePacked("\x19\x01", token.DOMAIN_SEPARATOR(), inner)));
        token.permit(client, address(escrow), 7, deadline, v, r, s);
        vm.startPrank(client);
        escrow.depositWithPermit(7, deadline, v, r, s);
        _eq(escrow.balanceOf(client), 1e23 + 7);
        vm.expectRevert(abi.encodeWithSelector(IERC20Errors.ERC20InsufficientAllowance.selector, address(escrow), 0, 7));
        escrow.depositWithPermit(7, deadline, v, r, s);
        vm.stopPrank();
    }
}

contract EscrowOpenTest is EscrowFixture {
    function _rejects(ISessionEscrowTypes.SessionKey memory k, uint256 amount, bytes memory error_) internal {
        vm.expectRevert(error_);
        vm.prank(client);
        escrow.open(k, amount);
    }

    function test_open_locksTheAmount() public {
        id = _open(key, 5 ether);
        ISessionEscrowTypes.Session memory s = escrow.sessionOf(id);
        _eq(s.deposit, 5 ether);
        _eq(s.settled, 0);
        _eq(s.feeBps, FEE_BPS);
        _eq(s.status, 1);
        _eq(escrow.balanceOf(client), 1e23 - 5 ether);
        _eq32(id, keccak256(abi.encode(block.chainid, address(escrow), key)));
        _solvent();
    }

    function test_RevertWhen_openedTwice_evenAfterTheClose() public {
        id = _open(key, 1 ether);
        bytes memory exists = abi.encodeWithSelector(ISessionEscrowErrors.SessionExists.selector, id);
        _rejects(key, 1 ether, exists);
        vm.prank(client);
        escrow.requestClose(key);
        vm.warp(_now() + GRACE);
        escrow.finalizeClose(key);
        _rejects(key, 1 ether, exists);
    }

    function test_RevertWhen_openedBadly() public {
        _rejects(key, 0, abi.encodeWithSelector(ISessionEscrowErrors.ZeroAmount.selector));
        _rejects(
            key,
            1e24,
            abi.encodeWithSelector(IVerifierCommitteeErrors.ProbationCapExceeded.selector, nodes[0], 10 ether, 1e24)
        );
        ISessionEscrowTypes.SessionKey memory k = _key(2);
        k.client = address(this);
        _rejects(k, 1, abi.encodeWithSelector(ISessionEscrowErrors.NotClient.selector, address(this), client));
        k = _key(2);
        k.expiry = uint40(_now());
        _rejects(k, 1, abi.encodeWithSelector(ISessionEscrowErrors.SessionExpired.selector, _now(), _now()));
        k = _key(2);
        k.maxPricePerKTok = 1_999;
        _rejects(k, 1, abi.encodeWithSelector(ISessionEscrowErrors.RouteTooExpensive.selector, 2_000, 1_999));
        k = _key(2);
        k.shares[0] = 3_334;
        _rejects(k, 1, abi.encodeWithSelector(ISessionEscrowErrors.SharesSumMismatch.selector, 10_001));
        k.shares = new uint16[](1);
        k.shares[0] = 10_000;
        _rejects(k, 1, abi.encodeWithSelector(ISessionEscrowErrors.SharesLengthMismatch.selector, 2, 1));
        k = _key(2);
        k.nodes[1] = nodes[0];
        _rejects(k, 1, abi.encodeWithSelector(INodeRegistryErrors.RouteGap.selector, 1, 2, 0));
    }

    function test_RevertWhen_theBalanceIsTooSmall() public {
        vm.prank(client);
        escrow.withdraw(1e23 - 1);
        _rejects(key, 2, abi.encodeWithSelector(ISessionEscrowErrors.InsufficientBalance.selector, 2, 1));
    }

    function test_probation_capsWhatASessionHolds() public {
        bytes memory capped = abi.encodeWithSelector(
            IVerifierCommitteeErrors.ProbationCapExceeded.selector, nodes[0], 10 ether, 10 ether + 1
        );
        _rejects(key, 10 ether + 1, capped);
        id = _open(key, 10 ether);
        vm.expectRevert(capped);
        vm.prank(client);
        escrow.topUp(key, 1);
        _trusted(2);
        vm.prank(client);
        escrow.topUp(key, 90 ether);
        _eq(escrow.sessionOf(id).deposit, 100 ether);
    }

    function test_RevertWhen_aNodeIsExcluded() public {
        _judge(2, _one(nodes[1]), _verdict(0, 1, false));
        key.expiry = uint40(_now() + 100);
        _rejects(key, 1, abi.encodeWithSelector(IVerifierCommitteeErrors.NodeExcluded.selector, nodes[1], 22));
    }

    function test_openWithSig_byARelayer() public {
        id = escrow.sessionIdOf(key);
        uint256 deadline = _now();
        bytes memory sig = _sign(CLIENT_KEY, escrow.openDigest(id, 5, deadline));
        vm.expectRevert(abi.encodeWithSelector(ISessionEscrowErrors.InvalidSignature.selector, client));
        escrow.openWithSig(key, 6, deadline, sig);
        _eq32(escrow.openWithSig(key, 5, deadline, sig), id);
        vm.expectRevert(abi.encodeWithSelector(ISessionEscrowErrors.SessionExists.selector, id));
        escrow.openWithSig(key, 5, deadline, sig);
        vm.warp(deadline + 1);
        vm.expectRevert(abi.encodeWithSelector(ISessionEscrowErrors.DeadlinePassed.selector, deadline, deadline + 1));
        escrow.openWithSig(key, 5, deadline, sig);
    }

    function test_topUp() public {
        id = _open(key, 1 ether);
        vm.prank(client);
        escrow.topUp(key, 2 ether);
        _eq(escrow.sessionOf(id).deposit, 3 ether);
        vm.expectRevert(abi.encodeWithSelector(ISessionEscrowErrors.NotClient.selector, client, address(this)));
        escrow.topUp(key, 1);
        vm.startPrank(client);
        vm.expectRevert(ISessionEscrowErrors.ZeroAmount.selector);
        escrow.topUp(key, 0);
        vm.warp(key.expiry);
        vm.expectRevert(abi.encodeWithSelector(ISessionEscrowErrors.SessionExpired.selector, key.expiry, key.expiry));
        escrow.topUp(key, 1);
        escrow.requestClose(key);
        _wrongStatus(2);
        escrow.topUp(key, 1);
        vm.stopPrank();
        _solvent();
    }

    function test_params_notRetroactive_feeIsTakenFromTheOpening() public {
        id = _open(key, 1 ether);
        escrow.setFeeBps(2_000);
        _eq(escrow.feeBps(), FEE_BPS);
        _at(2, 0);
        _eq(escrow.feeBps(), 2_000);
        _settle(key, 1 ether);
        _eq(escrow.protocolFees(), 0.03 ether);
        ISessionEscrowTypes.SessionKey memory later = _key(2);
        bytes32 laterId = _open(later, 1 ether);
        _eq(escrow.sessionOf(laterId).feeBps, 2_000);
    }

    function test_RevertWhen_theFeeIsTooHighOrTheAdminSomebodyElse() public {
        vm.expectRevert(abi.encodeWithSelector(ISessionEscrowErrors.FeeTooHigh.selector, 2_001, 2_000));
        escrow.setFeeBps(2_001);
        vm.expectRevert(
            abi.encodeWithSelector(IAccessControl.AccessControlUnauthorizedAccount.selector, client, bytes32(0))
        );
        vm.prank(client);
        escrow.setFeeBps(1);
        vm.expectRevert(abi.encodeWithSelector(ISessionEscrowErrors.GraceOutOfBounds.selector, 0, 1, 30 days));
        new SessionEscrow(token, registry, committee, GENESIS, EPOCH, 0, 0, address(this));
    }
}

contract EscrowSettleTest is EscrowFixture {
    function setUp() public override {
        super.setUp();
        id = _open(key, 10 ether);
    }

    function test_settle_splitsByShares() public {
        _settle(key, 1 ether);
        uint256 net = 1 ether - 0.03 ether;
        _eq(escrow.protocolFees(), 0.03 ether);
        _eq(escrow.owedOf(nodes[0]), net * 3_333 / 10_000);
        _eq(escrow.owedOf(nodes[1]), net - net * 3_333 / 10_000);
        _eq(escrow.sessionOf(id).settled, 1 ether);
        _eq(escrow.volumeOf(1), 1 ether);
        _solvent();
    }

    /// forge-config: default.fuzz.runs = 64
    function testFuzz_voucher_splitsSumExactly(uint96[6] memory steps, uint16[5] memory raw, uint16 fee) public {
        escrow.setFeeBps(uint16(_bound(fee, 0, 2_000)));
        _at(2, 0);
        (ISessionEscrowTypes.SessionKey memory k, bytes32 session) = _fiveNodeSession(raw);
        uint256 cumulative;
        for (uint256 i; i < 6; ++i) {
            uint256 step = _bound(steps[i], 0, 8 ether - cumulative);
            if (step == 0) continue;
            uint256 before = _credits(k.nodes) + escrow.protocolFees();
            cumulative += step;
            _settle(k, cumulative);
            _eq(_credits(k.nodes) + escrow.protocolFees() - before, step);
        }
        _eq(escrow.sessionOf(session).settled, cumulative);
        _eq(escrow.volumeOf(2), cumulative);
        _atMost(escrow.protocolFees(), cumulative * escrow.feeBps() / 10_000);
    }

    function _fiveNodeSession(uint16[5] memory raw)
        private
        returns (ISessionEscrowTypes.SessionKey memory k, bytes32 session)
    {
        bytes32 model = models.register("five", _modelParams(5), 0, "u");
        k = _key(7);
        k.modelId = model;
        k.maxPricePerKTok = 5_000;
        k.nodes = new address[](5);
        k.shares = new uint16[](5);
        uint256 left = 10_000;
        for (uint16 i; i < 5; ++i) {
            address node = address(uint160(0xF00 + i));
            _stake(node, NODE_STAKE);
            vm.prank(node);
            registry.register(model, i, i + 1, 1_000, node, 0, "e");
            k.nodes[i] = node;
            k.shares[i] = uint16(i == 4 ? left : _bound(raw[i], 0, left));
            left -= k.shares[i];
        }
        session = _open(k, 8 ether);
    }

    function _credits(address[] memory list) private view returns (uint256 sum) {
        for (uint256 i; i < list.length; ++i) {
            sum += escrow.owedOf(list[i]);
        }
    }

    function test_voucher_noReplay() public {
        (ISessionEscrowTypes.Voucher memory v, bytes memory sig) = _voucher(id, 2 ether);
        escrow.settle(key, v, sig);
        vm.expectRevert(abi.encodeWithSelector(ISessionEscrowErrors.StaleVoucher.selector, 2 ether, 2 ether));
        escrow.settle(key, v, sig);
        (ISessionEscrowTypes.Voucher memory lower, bytes memory lowerSig) = _voucher(id, 1 ether);
        vm.expectRevert(abi.encodeWithSelector(ISessionEscrowErrors.StaleVoucher.selector, 1 ether, 2 ether));
        escrow.settle(key, lower, lowerSig);
        ISessionEscrowTypes.SessionKey memory other = _key(2);
        bytes32 otherId = _open(other, 10 ether);
        vm.expectRevert(abi.encodeWithSelector(ISessionEscrowErrors.WrongSession.selector, otherId, id));
        escrow.settle(other, v, sig);
        v.sessionId = otherId;
        vm.expectRevert(abi.encodeWithSelector(ISessionEscrowErrors.InvalidSignature.selector, hot));
        escrow.settle(other, v, sig);
        _solvent2(otherId);
    }

    function _solvent2(bytes32 otherId) private view {
        _eq(
            token.balanceOf(address(escrow)),
            escrow.balanceOf(client) + 8 ether + escrow.sessionOf(otherId).deposit + escrow.owedOf(nodes[0])
                + escrow.owedOf(nodes[1]) + escrow.protocolFees()
        );
    }

    function test_voucher_noReplay_onAnotherChainOrContract() public {
        (ISessionEscrowTypes.Voucher memory v, bytes memory sig) = _voucher(id, 2 ether);
        SessionEscrow twin =
            new SessionEscrow(token, registry, committee, GENESIS, EPOCH, FEE_BPS, GRACE, address(this));
        _true(twin.voucherDigest(v) != escrow.voucherDigest(v), "contract");
        bytes32 here = escrow.voucherDigest(v);
        bytes32 hereId = escrow.sessionIdOf(key);
        uint256 chain = block.chainid;
        vm.chainId(chain + 1);
        _true(escrow.voucherDigest(v) != here, "chain");
        bytes32 thereId = escrow.sessionIdOf(key);
        _true(thereId != hereId, "session id");
        vm.expectRevert(abi.encodeWithSelector(ISessionEscrowErrors.WrongSessionStatus.selector, thereId, 0));
        escrow.settle(key, v, sig);
        vm.chainId(chain);
        escrow.settle(key, v, sig);
    }

    function test_RevertWhen_voucherIsForgedOrTooHigh() public {
        (ISessionEscrowTypes.Voucher memory v, bytes memory sig) = _voucher(id, 2 ether);
        v.cumulative += 1;
        bytes memory invalid = abi.encodeWithSelector(ISessionEscrowErrors.InvalidSignature.selector, hot);
        vm.expectRevert(invalid);
        escrow.settle(key, v, sig);
        v.cumulative -= 1;
        v.tokens += 1;
        vm.expectRevert(invalid);
        escrow.settle(key, v, sig);
        v.tokens -= 1;
        v.receiptsRoot = "other";
        vm.expectRevert(invalid);
        escrow.settle(key, v, sig);
        (v, sig) = _voucher(id, 10 ether + 1);
        vm.expectRevert(
            abi.encodeWithSelector(ISessionEscrowErrors.VoucherExceedsDeposit.selector, 10 ether + 1, 10 ether)
        );
        escrow.settle(key, v, sig);
    }

    function test_auth_isPerResource_routeCannotBeSwapped() public {
        // The same voucher with another route is another session, which does not exist.
        (ISessionEscrowTypes.Voucher memory v, bytes memory sig) = _voucher(id, 2 ether);
        ISessionEscrowTypes.SessionKey memory forged = _key(1);
        forged.shares[0] = 10_000;
        forged.shares[1] = 0;
        bytes32 forgedId = escrow.sessionIdOf(forged);
        vm.expectRevert(abi.encodeWithSelector(ISessionEscrowErrors.WrongSessionStatus.selector, forgedId, 0));
        escrow.settle(forged, v, sig);
    }

    function test_eip712_signerMayBeAContract() public {
        ISessionEscrowTypes.SessionKey memory k = _key(3);
        k.signer = address(new Wallet(hot));
        bytes32 session = _open(k, 1 ether);
        _settle(k, 0.5 ether);
        _eq(escrow.sessionOf(session).settled, 0.5 ether);
    }

    function testFuzz_eip712_digestsAreExact(bytes32 session, uint128 cumulative, uint64 tokens, bytes32 root)
        public
        view
    {
        bytes32 domain = keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
                keccak256("EfedSession"),
                keccak256("1"),
                block.chainid,
                address(escrow)
            )
        );
        ISessionEscrowTypes.Voucher memory v = ISessionEscrowTypes.Voucher(session, cumulative, tokens, root);
        bytes32 t = keccak256("Voucher(bytes32 sessionId,uint128 cumulative,uint64 tokens,bytes32 receiptsRoot)");
        bytes32 inner = keccak256(abi.encode(t, session, cumulative, tokens, root));
        _eq32(escrow.voucherDigest(v), keccak256(abi.encodePacked("\x19\x01", domain, inner)));
        t = keccak256("CooperativeClose(bytes32 sessionId,uint128 cumulative,uint64 tokens,bytes32 receiptsRoot)");
        inner = keccak256(abi.encode(t, session, cumulative, tokens, root));
        _eq32(escrow.cooperativeCloseDigest(v), keccak256(abi.encodePacked("\x19\x01", domain, inner)));
        t = keccak256("Open(bytes32 sessionId,uint256 amount,uint256 deadline)");
        inner = keccak256(abi.encode(t, session, uint256(cumulative), uint256(tokens)));
        _eq32(escrow.openDigest(session, cumulative, tokens), keccak256(abi.encodePacked("\x19\x01", domain, inner)));
    }

    function test_settleMany_skipsWhatHasNoNews() public {
        ISessionEscrowTypes.SessionKey[] memory keys = new ISessionEscrowTypes.SessionKey[](3);
        ISessionEscrowTypes.Voucher[] memory vs = new ISessionEscrowTypes.Voucher[](3);
        bytes[] memory sigs = new bytes[](3);
        (keys[0], keys[1], keys[2]) = (key, _key(2), _key(9));
        bytes32 second = _open(keys[1], 1 ether);
        (vs[0], sigs[0]) = _voucher(id, 1 ether);
        (vs[1], sigs[1]) = _voucher(second, 1 ether);
        (vs[2], sigs[2]) = _voucher(escrow.sessionIdOf(keys[2]), 1 ether);
        escrow.settle(keys[0], vs[0], sigs[0]);
        escrow.settleMany(keys, vs, sigs);
        _eq(escrow.sessionOf(id).settled, 1 ether);
        _eq(escrow.sessionOf(second).settled, 1 ether);
        vm.expectRevert(abi.encodeWithSelector(ISessionEscrowErrors.LengthMismatch.selector, 3, 3, 2));
        escrow.settleMany(keys, vs, new bytes[](2));
        (vs[0],) = _voucher(id, 2 ether);
        vm.expectRevert(abi.encodeWithSelector(ISessionEscrowErrors.InvalidSignature.selector, hot));
        escrow.settleMany(keys, vs, sigs);
    }

    function test_work_isKeptForTwoEpochs() public {
        _settle(key, 1 ether);
        uint256 first = escrow.workOf(1, nodes[0]);
        _eq(first, escrow.owedOf(nodes[0]) / 1e9 * 1e9);
        _at(2, 0);
        _eq(escrow.workOf(1, nodes[0]), first);
        _settle(key, 3 ether);
        _eq(escrow.workOf(1, nodes[0]), first);
        _eq(escrow.workOf(2, nodes[0]), (escrow.owedOf(nodes[0]) - first) / 1e9 * 1e9);
        _eq(escrow.volumeOf(1), 1 ether);
        _eq(escrow.volumeOf(2), 2 ether);
        _at(4, 0);
        _settle(key, 4 ether);
        _eq(escrow.workOf(2, nodes[0]), 0);
        _eq(escrow.workOf(3, nodes[0]), 0);
        _eq(escrow.volumeOf(1), 1 ether);
        _eq(escrow.volumeOf(2), 2 ether);
        _eq(escrow.volumeOf(3), 0);
        _eq(escrow.volumeOf(4), 1 ether);
    }

    function test_withdrawFees_and_sweep() public {
        _settle(key, 1 ether);
        uint256 owed = escrow.owedOf(nodes[0]);
        vm.startPrank(nodes[0]);
        vm.expectRevert(ISessionEscrowErrors.InvalidReceiver.selector);
        escrow.withdrawFees(address(0));
        escrow.withdrawFees(address(0x70));
        vm.expectRevert(ISessionEscrowErrors.ZeroAmount.selector);
        escrow.withdrawFees(address(0x70));
        vm.stopPrank();
        _eq(token.balanceOf(address(0x70)), owed);
        uint256 supply = token.totalSupply();
        escrow.sweepProtocolFees();
        _eq(supply - token.totalSupply(), 0.03 ether);
        _eq(escrow.protocolFees(), 0);
        vm.expectRevert(ISessionEscrowErrors.ZeroAmount.selector);
        escrow.sweepProtocolFees();
        _solvent();
    }
}

contract EscrowCloseTest is EscrowFixture {
    function setUp() public override {
        super.setUp();
        id = _open(key, 10 ether);
    }

    function test_close_afterTheGracePeriod() public {
        vm.prank(client);
        escrow.requestClose(key);
        _eq(_status(), 2);
        uint256 closesAt = _now() + GRACE;
        _eq(escrow.sessionOf(id).closesAt, closesAt);
        vm.expectRevert(abi.encodeWithSelector(ISessionEscrowErrors.TooEarlyToClose.selector, closesAt, _now()));
        escrow.finalizeClose(key);
        // A node that held the newest voucher back still gets paid.
        _settle(key, 4 ether);
        vm.warp(closesAt);
        escrow.finalizeClose(key);
        _eq(_status(), 3);
        _eq(escrow.balanceOf(client), 1e23 - 4 ether);
        _solvent();
    }

    function test_close_byAnyoneAfterExpiryAndGrace() public {
        uint256 closesAt = uint256(key.expiry) + GRACE;
        vm.warp(closesAt - 1);
        vm.expectRevert(abi.encodeWithSelector(ISessionEscrowErrors.TooEarlyToClose.selector, closesAt, closesAt - 1));
        escrow.finalizeClose(key);
        vm.warp(closesAt);
        vm.prank(address(0xBEEF));
        escrow.finalizeClose(key);
        _eq(escrow.balanceOf(client), 1e23);
    }

    function test_state_noDoubleRelease() public {
        vm.prank(client);
        escrow.requestClose(key);
        vm.warp(_now() + GRACE);
        escrow.finalizeClose(key);
        (ISessionEscrowTypes.Voucher memory v, bytes memory sig) = _voucher(id, 1 ether);
        _wrongStatus(3);
        escrow.finalizeClose(key);
        _wrongStatus(3);
        escrow.settle(key, v, sig);
        _wrongStatus(3);
        escrow.closeCooperative(key, v, sig, new bytes[](2));
        vm.startPrank(client);
        _wrongStatus(3);
        escrow.requestClose(key);
        _wrongStatus(3);
        escrow.settleAndClose(key, v, sig);
        _wrongStatus(3);
        escrow.topUp(key, 1);
        vm.stopPrank();
        _settleManyOfOne(v, sig);
        _eq(escrow.sessionOf(id).settled, 0);
        _eq(escrow.balanceOf(client), 1e23);
        _solvent();
    }

    function _settleManyOfOne(ISessionEscrowTypes.Voucher memory v, bytes memory sig) private {
        ISessionEscrowTypes.SessionKey[] memory keys = new ISessionEscrowTypes.SessionKey[](1);
        ISessionEscrowTypes.Voucher[] memory vs = new ISessionEscrowTypes.Voucher[](1);
        bytes[] memory sigs = new bytes[](1);
        (keys[0], vs[0], sigs[0]) = (key, v, sig);
        escrow.settleMany(keys, vs, sigs);
    }

    function test_requestClose_cannotRestartTheGracePeriod() public {
        vm.startPrank(client);
        escrow.requestClose(key);
        _wrongStatus(2);
        escrow.requestClose(key);
        vm.stopPrank();
    }

    function test_settleAndClose_atOnceWhenNothingIsLeft() public {
        (ISessionEscrowTypes.Voucher memory v, bytes memory sig) = _voucher(id, 10 ether);
        vm.prank(client);
        escrow.settleAndClose(key, v, sig);
        _eq(_status(), 3);
        _eq(escrow.balanceOf(client), 1e23 - 10 ether);
        _solvent();
    }

    function test_escrow_payerCannotRug_withAnOldVoucher() public {
        (ISessionEscrowTypes.Voucher memory old, bytes memory oldSig) = _voucher(id, 1 ether);
        vm.prank(client);
        escrow.settleAndClose(key, old, oldSig);
        _eq(_status(), 2);
        _eq(escrow.sessionOf(id).settled, 1 ether);
        _settle(key, 9 ether);
        vm.warp(_now() + GRACE);
        escrow.finalizeClose(key);
        _eq(escrow.balanceOf(client), 1e23 - 9 ether);
        _solvent();
    }

    function test_settleAndClose_withASettledVoucher() public {
        (ISessionEscrowTypes.Voucher memory v, bytes memory sig) = _voucher(id, 1 ether);
        escrow.settle(key, v, sig);
        vm.prank(client);
        escrow.settleAndClose(key, v, sig);
        _eq(_status(), 2);
    }

    function test_RevertWhen_notTheClient() public {
        (ISessionEscrowTypes.Voucher memory v, bytes memory sig) = _voucher(id, 1 ether);
        bytes memory denied = abi.encodeWithSelector(ISessionEscrowErrors.NotClient.selector, client, address(this));
        vm.expectRevert(denied);
        escrow.requestClose(key);
        vm.expectRevert(denied);
        escrow.settleAndClose(key, v, sig);
    }

    function _cooperative(uint256 cumulative)
        private
        view
        returns (ISessionEscrowTypes.Voucher memory v, bytes memory clientSig, bytes[] memory nodeSigs)
    {
        v = ISessionEscrowTypes.Voucher(id, uint128(cumulative), 1, "r");
        bytes32 digest = escrow.cooperativeCloseDigest(v);
        clientSig = _sign(CLIENT_KEY, digest);
        nodeSigs = new bytes[](2);
        (nodeSigs[0], nodeSigs[1]) = (_sign(_nodeKey(0), digest), _sign(_nodeKey(1), digest));
    }

    function test_closeCooperative_refundsAtOnce() public {
        _settle(key, 1 ether);
        (ISessionEscrowTypes.Voucher memory v, bytes memory c, bytes[] memory n) = _cooperative(3 ether);
        escrow.closeCooperative(key, v, c, n);
        _eq(_status(), 3);
        _eq(escrow.balanceOf(client), 1e23 - 3 ether);
        _solvent();
    }

    function test_closeCooperative_atTheSettledAmount() public {
        _settle(key, 3 ether);
        (ISessionEscrowTypes.Voucher memory v, bytes memory c, bytes[] memory n) = _cooperative(3 ether);
        vm.prank(client);
        escrow.requestClose(key);
        escrow.closeCooperative(key, v, c, n);
        _eq(escrow.balanceOf(client), 1e23 - 3 ether);
    }

    function test_RevertWhen_somebodyDidNotAgree() public {
        _settle(key, 1 ether);
        (ISessionEscrowTypes.Voucher memory v, bytes memory c, bytes[] memory n) = _cooperative(3 ether);
        bytes memory good = n[1];
        n[1] = n[0];
        vm.expectRevert(abi.encodeWithSelector(ISessionEscrowErrors.InvalidSignature.selector, nodes[1]));
        escrow.closeCooperative(key, v, c, n);
        n[1] = good;
        vm.expectRevert(abi.encodeWithSelector(ISessionEscrowErrors.InvalidSignature.selector, client));
        escrow.closeCooperative(key, v, good, n);
        vm.expectRevert(abi.encodeWithSelector(ISessionEscrowErrors.NodeSignaturesMismatch.selector, 2, 1));
        escrow.closeCooperative(key, v, c, new bytes[](1));
        // A voucher signature is no consent to close.
        (ISessionEscrowTypes.Voucher memory plain, bytes memory plainSig) = _voucher(id, 3 ether);
        vm.expectRevert(abi.encodeWithSelector(ISessionEscrowErrors.InvalidSignature.selector, client));
        escrow.closeCooperative(key, plain, plainSig, n);
        (v, c, n) = _cooperative(0.5 ether);
        vm.expectRevert(abi.encodeWithSelector(ISessionEscrowErrors.StaleVoucher.selector, 0.5 ether, 1 ether));
        escrow.closeCooperative(key, v, c, n);
    }
}
