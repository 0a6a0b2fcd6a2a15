// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {ISessionEscrowErrors, ISessionEscrowTypes} from "../../contracts/interfaces/ISessionEscrow.sol";
import {EscrowFixture} from "./EscrowFixture.sol";
import {NoWallet, Wallet, YesWallet} from "./Wallets.sol";

/// @notice The holder of a key can give its account code at any time, and take it away again (EIP-7702). That voids
/// nothing that the key signed. It makes nothing valid that the key did not sign.
abstract contract SignerFixture is EscrowFixture {
    uint256 internal constant STRANGER_KEY = 0x5715;

    address internal yes;
    address internal no;

    function setUp() public virtual override {
        super.setUp();
        (yes, no) = (address(new YesWallet()), address(new NoWallet()));
    }

    function _delegation(address to) internal pure returns (bytes memory) {
        return abi.encodePacked(hex"ef0100", to);
    }

    /// @dev Code that a signer may get: reverting, refusing, accepting, and delegations of EIP-7702 to the like.
    function _codes() internal view returns (bytes[] memory codes) {
        codes = new bytes[](6);
        (codes[0], codes[1], codes[2]) = (bytes(hex"5f5ffd"), no.code, yes.code);
        (codes[3], codes[4], codes[5]) = (_delegation(no), _delegation(yes), _delegation(address(0xDEAD)));
    }

    function _invalid(address account) internal {
        vm.expectRevert(abi.encodeWithSelector(ISessionEscrowErrors.InvalidSignature.selector, account));
    }

    /// @dev A session of its own for each nonce, and a voucher for all of it.
    function _served(uint64 nonce)
        internal
        returns (ISessionEscrowTypes.SessionKey memory k, ISessionEscrowTypes.Voucher memory v, bytes memory sig)
    {
        k = _key(nonce);
        id = _open(k, 5 ether);
        (v, sig) = _voucher(id, 5 ether);
    }

    function _expectPaid(uint256 cumulative) internal view {
        _eq(escrow.sessionOf(id).settled, cumulative);
        _true(!escrow.sessionOf(id).contractSigner, "no contract when it opened");
    }
}

/// @notice Code that an account gets after it signed.
contract EscrowLaterCodeTest is SignerFixture {
    function test_work_isPaidFor_whenTheSignerGetsCodeLater() public {
        bytes[] memory codes = _codes();
        for (uint64 i; i < codes.length; ++i) {
            vm.etch(hot, "");
            (ISessionEscrowTypes.SessionKey memory k, ISessionEscrowTypes.Voucher memory v, bytes memory sig) =
                _served(10 + i);
            uint256 owed = escrow.owedOf(nodes[0]) + escrow.owedOf(nodes[1]);
            uint256 balance = escrow.balanceOf(client);
            vm.etch(hot, codes[i]);
            escrow.settle(k, v, sig);
            _expectPaid(5 ether);
            _eq(escrow.owedOf(nodes[0]) + escrow.owedOf(nodes[1]) - owed, 5 ether * 97 / 100);
            vm.prank(client);
            escrow.requestClose(k);
            vm.warp(_now() + GRACE);
            escrow.finalizeClose(k);
            _eq(escrow.balanceOf(client), balance);
        }
        _solvent();
    }

    function test_work_isPaidFor_whenTheSignerGetsCodeLater_inTheGracePeriod() public {
        (ISessionEscrowTypes.SessionKey memory k, ISessionEscrowTypes.Voucher memory v, bytes memory sig) = _served(1);
        vm.prank(client);
        escrow.requestClose(k);
        vm.etch(hot, no.code);
        escrow.settle(k, v, sig);
        _expectPaid(5 ether);
    }

    function test_work_isPaidFor_whenTheSignerGetsCodeLater_bySettleMany() public {
        bytes[] memory codes = _codes();
        for (uint64 i; i < codes.length; ++i) {
            vm.etch(hot, "");
            (ISessionEscrowTypes.SessionKey memory k, ISessionEscrowTypes.Voucher memory v, bytes memory sig) =
                _served(10 + i);
            vm.etch(hot, codes[i]);
            _settleManyOfOne(k, v, sig);
            _expectPaid(5 ether);
        }
    }

    function test_work_isPaidFor_whenTheSignerGetsCodeLater_bySettleAndClose() public {
        bytes[] memory codes = _codes();
        for (uint64 i; i < codes.length; ++i) {
            vm.etch(hot, "");
            (ISessionEscrowTypes.SessionKey memory k, ISessionEscrowTypes.Voucher memory v, bytes memory sig) =
                _served(10 + i);
            vm.etch(hot, codes[i]);
            vm.prank(client);
            escrow.settleAndClose(k, v, sig);
            _expectPaid(5 ether);
            _eq(_status(), 3);
        }
    }

    function test_work_isPaidFor_whenTheSignerGetsCodeLater_byCloseCooperative() public {
        bytes[] memory codes = _codes();
        for (uint64 i; i < codes.length; ++i) {
            (ISessionEscrowTypes.SessionKey memory k,,) = _served(10 + i);
            (ISessionEscrowTypes.Voucher memory v, bytes memory c, bytes[] memory n) = _cooperative(id, 3 ether);
            vm.etch(client, codes[i]);
            vm.etch(nodes[0], codes[i]);
            vm.etch(nodes[1], codes[codes.length - 1 - i]);
            escrow.closeCooperative(k, v, c, n);
            vm.etch(client, "");
            _expectPaid(3 ether);
            _eq(_status(), 3);
        }
    }

    function test_work_isPaidFor_whenTheSignerGetsCodeLater_openedWithSig() public {
        bytes[] memory codes = _codes();
        for (uint64 i; i < codes.length; ++i) {
            ISessionEscrowTypes.SessionKey memory k = _key(10 + i);
            id = escrow.sessionIdOf(k);
            bytes memory sig = _sign(CLIENT_KEY, escrow.openDigest(id, 5 ether, _now()));
            vm.etch(client, codes[i]);
            escrow.openWithSig(k, 5 ether, _now(), sig);
            vm.etch(hot, codes[i]);
            (ISessionEscrowTypes.Voucher memory v, bytes memory voucherSig) = _voucher(id, 5 ether);
            escrow.settle(k, v, voucherSig);
            vm.etch(hot, "");
            _expectPaid(5 ether);
        }
    }

    /// forge-config: default.fuzz.runs = 64
    function testFuzz_work_isPaidFor_whateverCodeTheSignerGets(bytes memory tail, bool delegated) public {
        (ISessionEscrowTypes.SessionKey memory k, ISessionEscrowTypes.Voucher memory v, bytes memory sig) = _served(1);
        // 5f is no designator: the code is what the fuzzer makes of it.
        vm.etch(
            hot, delegated ? _delegation(address(uint160(uint256(keccak256(tail))))) : abi.encodePacked(hex"5f", tail)
        );
        escrow.settle(k, v, sig);
        _expectPaid(5 ether);
    }

    function test_RevertWhen_forgedForASignerThatAcceptsEverythingLater() public {
        (ISessionEscrowTypes.SessionKey memory k, ISessionEscrowTypes.Voucher memory v, bytes memory sig) = _served(1);
        bytes[] memory forgeries = new bytes[](3);
        forgeries[0] = "";
        forgeries[1] = _sign(STRANGER_KEY, escrow.voucherDigest(v));
        forgeries[2] = new bytes(65);
        for (uint256 i; i < 6; ++i) {
            vm.etch(hot, i % 2 == 0 ? yes.code : _delegation(yes));
            bytes memory forged = forgeries[i % 3];
            _invalid(hot);
            escrow.settle(k, v, forged);
            _invalid(hot);
            _settleManyOfOne(k, v, forged);
            _invalid(hot);
            vm.prank(client);
            escrow.settleAndClose(k, v, forged);
        }
        vm.etch(hot, yes.code);
        // The session keeps its rule whatever happens to it.
        vm.prank(client);
        escrow.topUp(k, 1 ether);
        _invalid(hot);
        escrow.settle(k, v, "");
        (ISessionEscrowTypes.Voucher memory part, bytes memory partSig) = _voucher(id, 1 ether);
        escrow.settle(k, part, partSig);
        _invalid(hot);
        escrow.settle(k, v, "");
        vm.prank(client);
        escrow.requestClose(k);
        _invalid(hot);
        escrow.settle(k, v, "");
        escrow.settle(k, v, sig);
        _expectPaid(5 ether);
    }

    function test_RevertWhen_aVoucherHasASecondSignature() public {
        (ISessionEscrowTypes.SessionKey memory k, ISessionEscrowTypes.Voucher memory v, bytes memory sig) = _served(1);
        (uint8 parity, bytes32 r, bytes32 s) = vm.sign(HOT_KEY, escrow.voucherDigest(v));
        uint256 order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141;
        // What anybody can derive from the first one.
        _invalid(hot);
        escrow.settle(k, v, abi.encodePacked(r, bytes32(order - uint256(s)), parity == 27 ? uint8(28) : uint8(27)));
        _invalid(hot);
        escrow.settle(k, v, abi.encodePacked(r, bytes32(uint256(s) | (parity == 28 ? 1 << 255 : 0))));
        _invalid(hot);
        escrow.settle(k, v, abi.encodePacked(sig, bytes1(0)));
    }
}

/// @notice Accounts that are contracts.
contract EscrowContractSignerTest is SignerFixture {
    Wallet internal wallet;

    function setUp() public override {
        super.setUp();
        wallet = new Wallet(hot);
        key.signer = address(wallet);
    }

    function test_voucher_bySignerWithCodeFromTheStart() public {
        id = _open(key, 5 ether);
        _true(escrow.sessionOf(id).contractSigner, "flag");
        (ISessionEscrowTypes.Voucher memory v, bytes memory sig) = _voucher(id, 1 ether);
        bytes memory other = _sign(STRANGER_KEY, escrow.voucherDigest(v));
        _invalid(address(wallet));
        escrow.settle(key, v, other);
        escrow.settle(key, v, sig);
        _eq(escrow.sessionOf(id).settled, 1 ether);
        (v, sig) = _voucher(id, 2 ether);
        _settleManyOfOne(key, v, sig);
        _eq(escrow.sessionOf(id).settled, 2 ether);
        vm.prank(client);
        escrow.topUp(key, 1 ether);
        (v, sig) = _voucher(id, 3 ether);
        vm.prank(client);
        escrow.settleAndClose(key, v, sig);
        _eq(escrow.sessionOf(id).settled, 3 ether);
        (v, sig) = _voucher(id, 4 ether);
        escrow.settle(key, v, sig);
        ISessionEscrowTypes.Session memory s = escrow.sessionOf(id);
        _eq(s.deposit, 6 ether);
        _eq(s.settled, 4 ether);
        _eq(s.closesAt, _now() + GRACE);
        _eq(s.feeBps, FEE_BPS);
        _eq(s.status, 2);
        _true(s.contractSigner, "flag kept");
        _solvent();
    }

    function test_voucher_bySignerWithCodeFromTheStart_openedWithSig() public {
        id = escrow.sessionIdOf(key);
        escrow.openWithSig(key, 5 ether, _now(), _sign(CLIENT_KEY, escrow.openDigest(id, 5 ether, _now())));
        _true(escrow.sessionOf(id).contractSigner, "flag");
        _settle(key, 1 ether);
    }

    /// @notice The account of a key had a delegation when the session opened. The vouchers of the key settle all the
    /// same.
    function test_voucher_ofAKeyWhoseAccountHadCodeFromTheStart() public {
        key.signer = hot;
        vm.etch(hot, _delegation(no));
        id = _open(key, 5 ether);
        _true(escrow.sessionOf(id).contractSigner, "flag");
        _settle(key, 1 ether);
        vm.etch(hot, "");
        _settle(key, 2 ether);
        // Without code there is nobody to ask.
        (ISessionEscrowTypes.Voucher memory v,) = _voucher(id, 3 ether);
        _invalid(hot);
        escrow.settle(key, v, "");
        _eq(escrow.sessionOf(id).settled, 2 ether);
    }

    /// @notice A contract can refuse later what it accepted before, also a voucher that a node already holds. Nodes
    /// read contractSigner and do not work for such a session.
    function test_voucher_contractSignerThatChangesItsMind() public {
        id = _open(key, 5 ether);
        _settle(key, 1 ether);
        (ISessionEscrowTypes.Voucher memory v, bytes memory sig) = _voucher(id, 5 ether);
        wallet.refuse(true);
        _invalid(address(wallet));
        escrow.settle(key, v, sig);
        wallet.refuse(false);
        uint256 snapshot = escrow.balanceOf(client);
        vm.prank(client);
        escrow.requestClose(key);
        wallet.refuse(true);
        _invalid(address(wallet));
        escrow.settle(key, v, sig);
        vm.etch(address(wallet), "");
        _invalid(address(wallet));
        escrow.settle(key, v, sig);
        vm.warp(_now() + GRACE);
        escrow.finalizeClose(key);
        // What was settled before stays settled.
        _eq(escrow.sessionOf(id).settled, 1 ether);
        _eq(escrow.balanceOf(client), snapshot + 4 ether);
        _solvent();
    }

    function test_voucher_contractSignerThatAcceptsAgain() public {
        id = _open(key, 5 ether);
        (ISessionEscrowTypes.Voucher memory v, bytes memory sig) = _voucher(id, 5 ether);
        wallet.refuse(true);
        _invalid(address(wallet));
        escrow.settle(key, v, sig);
        wallet.refuse(false);
        escrow.settle(key, v, sig);
        _eq(escrow.sessionOf(id).settled, 5 ether);
    }

    function test_contractSigner_isOfTheSession() public {
        // The same signer without code, then with code: each session keeps what was true when it opened.
        key.signer = hot;
        id = _open(key, 1 ether);
        vm.etch(hot, yes.code);
        ISessionEscrowTypes.SessionKey memory later = _key(2);
        bytes32 laterId = _open(later, 1 ether);
        _true(!escrow.sessionOf(id).contractSigner && escrow.sessionOf(laterId).contractSigner, "flags");
        (ISessionEscrowTypes.Voucher memory v,) = _voucher(id, 1 ether);
        _invalid(hot);
        escrow.settle(key, v, "");
        (v,) = _voucher(laterId, 1 ether);
        escrow.settle(later, v, "");
        _eq(escrow.sessionOf(laterId).settled, 1 ether);
    }

    function test_openWithSig_byAClientThatIsAContract() public {
        Wallet account = new Wallet(client);
        vm.prank(client);
        token.transfer(address(this), 2 ether);
        token.approve(address(escrow), 2 ether);
        escrow.depositFor(address(account), 2 ether);
        key.client = address(account);
        bytes32 first = escrow.sessionIdOf(key);
        uint256 deadline = _now();
        bytes memory sig = _sign(CLIENT_KEY, escrow.openDigest(first, 1 ether, deadline));
        account.refuse(true);
        _invalid(address(account));
        escrow.openWithSig(key, 1 ether, deadline, sig);
        account.refuse(false);
        escrow.openWithSig(key, 1 ether, deadline, sig);
        _eq(escrow.balanceOf(address(account)), 1 ether);
        key.nonce = 2;
        sig = _sign(CLIENT_KEY, escrow.openDigest(escrow.sessionIdOf(key), 1 ether, deadline));
        vm.etch(address(account), "");
        _invalid(address(account));
        escrow.openWithSig(key, 1 ether, deadline, sig);
    }

    function test_closeCooperative_byContracts() public {
        // A client and a key of a node that are contracts: they agree to what this call does, so their code is asked
        // now.
        Wallet account = new Wallet(client);
        Wallet nodeKey = new Wallet(nodes[1]);
        vm.prank(nodes[1]);
        registry.update(1_000, address(nodeKey));
        // A new key counts from the next epoch on.
        _at(2, 0);
        vm.prank(client);
        token.transfer(address(this), 2 ether);
        token.approve(address(escrow), 2 ether);
        escrow.depositFor(address(account), 2 ether);
        (key.client, key.signer) = (address(account), hot);
        id = _open(key, 2 ether);
        (ISessionEscrowTypes.Voucher memory v, bytes memory c, bytes[] memory n) = _cooperative(id, 1 ether);
        nodeKey.refuse(true);
        _invalid(address(nodeKey));
        escrow.closeCooperative(key, v, c, n);
        nodeKey.refuse(false);
        account.refuse(true);
        _invalid(address(account));
        escrow.closeCooperative(key, v, c, n);
        account.refuse(false);
        escrow.closeCooperative(key, v, c, n);
        _eq(_status(), 3);
        _eq(escrow.balanceOf(address(account)), 1 ether);
    }
}
