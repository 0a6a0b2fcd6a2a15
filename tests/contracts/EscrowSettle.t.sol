// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {SessionEscrow} from "../../contracts/SessionEscrow.sol";
import {ISessionEscrowErrors, ISessionEscrowTypes} from "../../contracts/interfaces/ISessionEscrow.sol";
import {EscrowFixture} from "./EscrowFixture.sol";
import {Wallet} from "./Wallets.sol";

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
