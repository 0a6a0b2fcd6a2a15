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
}
