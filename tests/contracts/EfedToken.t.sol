// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {IAccessControl} from "@openzeppelin/contracts/access/IAccessControl.sol";
import {EfedToken} from "../../contracts/EfedToken.sol";
import {IEfedToken} from "../../contracts/interfaces/IEfedToken.sol";
import {TestBase} from "./Vm.sol";

contract EfedTokenTest is TestBase {
    EfedToken internal token;

    function setUp() public {
        token = new EfedToken(address(this), 1_000, address(0xA), 400);
        token.grantRole(token.MINTER_ROLE(), address(this));
    }

    function test_constructor_names_and_supply() public view {
        _eq32(keccak256(bytes(token.name())), keccak256("eFedLLM"));
        _eq32(keccak256(bytes(token.symbol())), keccak256("EFED"));
        _eq(token.cap(), 1_000);
        _eq(token.totalSupply(), 400);
        _eq(token.balanceOf(address(0xA)), 400);
    }

    function test_RevertWhen_initialSupplyAboveCap() public {
        vm.expectRevert(abi.encodeWithSelector(IEfedToken.CapExceeded.selector, 10, 11));
        new EfedToken(address(this), 10, address(0xA), 11);
    }

    function test_mint_upToTheCap() public {
        token.mint(address(0xB), 600);
        _eq(token.totalSupply(), token.cap());
        vm.expectRevert(abi.encodeWithSelector(IEfedToken.CapExceeded.selector, 1_000, 1));
        token.mint(address(0xB), 1);
    }

    function test_burn_makesRoomUnderTheCap() public {
        token.mint(address(this), 600);
        token.burn(100);
        token.mint(address(0xB), 100);
        _eq(token.totalSupply(), 1_000);
    }

    function test_RevertWhen_notMinter() public {
        bytes32 role = token.MINTER_ROLE();
        vm.expectRevert(
            abi.encodeWithSelector(IAccessControl.AccessControlUnauthorizedAccount.selector, address(0xA), role)
        );
        vm.prank(address(0xA));
        token.mint(address(0xA), 1);
    }

    function testFuzz_mint_neverExceedsTheCap(uint256 amount) public {
        if (amount > 600) vm.expectRevert(abi.encodeWithSelector(IEfedToken.CapExceeded.selector, 1_000, amount));
        token.mint(address(0xB), amount);
        _atMost(token.totalSupply(), token.cap());
    }
}
