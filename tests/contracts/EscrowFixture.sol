// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {ISessionEscrowErrors, ISessionEscrowTypes} from "../../contracts/interfaces/ISessionEscrow.sol";
import {Fixture} from "./Fixture.sol";

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

    function _settleManyOfOne(
        ISessionEscrowTypes.SessionKey memory k,
        ISessionEscrowTypes.Voucher memory v,
        bytes memory sig
    ) internal {
        ISessionEscrowTypes.SessionKey[] memory keys = new ISessionEscrowTypes.SessionKey[](1);
        ISessionEscrowTypes.Voucher[] memory vs = new ISessionEscrowTypes.Voucher[](1);
        bytes[] memory sigs = new bytes[](1);
        (keys[0], vs[0], sigs[0]) = (k, v, sig);
        escrow.settleMany(keys, vs, sigs);
    }

    /// @dev What the client and both nodes sign to close at once.
    function _cooperative(bytes32 session, uint256 cumulative)
        internal
        view
        returns (ISessionEscrowTypes.Voucher memory v, bytes memory clientSig, bytes[] memory nodeSigs)
    {
        v = ISessionEscrowTypes.Voucher(session, uint128(cumulative), 1, "r");
        bytes32 digest = escrow.cooperativeCloseDigest(v);
        clientSig = _sign(CLIENT_KEY, digest);
        nodeSigs = new bytes[](2);
        (nodeSigs[0], nodeSigs[1]) = (_sign(_nodeKey(0), digest), _sign(_nodeKey(1), digest));
    }
}
