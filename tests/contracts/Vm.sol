// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

/// @notice The cheat codes the tests use; stands in for forge-std, whose npm package is incomplete.
interface Vm {
    struct Gas {
        uint64 gasLimit;
        uint64 gasTotalUsed;
        uint64 gasMemoryUsed;
        int64 gasRefunded;
        uint64 gasRemaining;
    }

    function prank(address) external;
    function startPrank(address) external;
    function stopPrank() external;
    function warp(uint256) external;
    function roll(uint256) external;
    function getBlockTimestamp() external view returns (uint256);
    function getBlockNumber() external view returns (uint256);
    function addr(uint256) external pure returns (address);
    function sign(uint256, bytes32) external pure returns (uint8, bytes32, bytes32);
    function assume(bool) external pure;
    function expectRevert(bytes4) external;
    function expectRevert(bytes calldata) external;
    function expectEmit(bool, bool, bool, bool, address) external;
    function lastCallGas() external view returns (Gas memory);
    function chainId(uint256) external;
    function etch(address, bytes calldata) external;
}

/// @notice Assertions and the hooks by which forge finds invariants' targets.
abstract contract TestBase {
    Vm internal constant vm = Vm(address(uint160(uint256(keccak256("hevm cheat code")))));
    bool public constant IS_TEST = true;
    address[] private _targets;

    error NotEqual(uint256 left, uint256 right);
    error NotEqualBytes32(bytes32 left, bytes32 right);
    error NotEqualAddress(address left, address right);
    error NotAtMost(uint256 left, uint256 right);
    error NotTrue(string what);

    function targetContracts() public view returns (address[] memory) {
        return _targets;
    }

    function _target(address t) internal {
        _targets.push(t);
    }

    function _bound(uint256 x, uint256 lo, uint256 hi) internal pure returns (uint256) {
        if (hi - lo == type(uint256).max) return x;
        return lo + x % (hi - lo + 1);
    }

    function _eq(uint256 a, uint256 b) internal pure {
        require(a == b, NotEqual(a, b));
    }

    function _eq32(bytes32 a, bytes32 b) internal pure {
        require(a == b, NotEqualBytes32(a, b));
    }

    function _eqAddress(address a, address b) internal pure {
        require(a == b, NotEqualAddress(a, b));
    }

    function _atMost(uint256 a, uint256 b) internal pure {
        require(a <= b, NotAtMost(a, b));
    }

    function _true(bool ok, string memory what) internal pure {
        require(ok, NotTrue(what));
    }
}
