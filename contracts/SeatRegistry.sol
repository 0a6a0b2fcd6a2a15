// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {AccessControl} from "@openzeppelin/contracts/access/AccessControl.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";
import {EntryPause} from "./EntryPause.sol";
import {EpochClock} from "./EpochClock.sol";
import {ISeatRegistry} from "./interfaces/ISeatRegistry.sol";
import {IStakeVault} from "./interfaces/IStakeVault.sol";
import {Draw} from "./libraries/Draw.sol";
import {TallyWord} from "./libraries/TallyWord.sol";

/// @title SeatRegistry
/// @notice Seats of the verifiers, the seed of every epoch, and the committees that follow from both.
contract SeatRegistry is ISeatRegistry, EpochClock, AccessControl, EntryPause {
    using SafeCast for uint256;

    /// @dev Second word of an epoch; the seed is the first.
    struct Round {
        bytes32 seed;
        uint64 armedBlock;
        uint8 committeeSize;
    }

    /// @dev Terms in force until `nextFrom`, and those after it; one slot.
    struct Schedule {
        uint8 committeeSize;
        uint96 seatStake;
        uint8 nextCommitteeSize;
        uint96 nextSeatStake;
        uint48 nextFrom;
    }

    bytes32 public constant COMMITTEE_ROLE = keccak256("COMMITTEE_ROLE");

    uint256 private constant MAX_SEATS = 64;
    /// @dev The seats of an epoch are needed until its work is judged, one epoch later.
    uint64 private constant SEAT_HISTORY = 2;
    /// @dev A seat survives small slashes: it can be evicted below this share of the seat stake.
    uint256 private constant EVICT_BPS = 7_500;
    uint256 private constant SEED_DELAY = 2;
    uint256 private constant BLOCKHASH_WINDOW = 256;
    uint256 private constant BPS = 10_000;

    /// @notice Where the stakes lie.
    IStakeVault public immutable vault;

    /// @dev Shares its slot with the entry switch.
    uint16 private _leftSeats;
    Schedule private _schedule;
    Seat[] private _seats;
    /// @dev Salts revealed so far; a second source for seeds besides block hashes.
    bytes32 private _entropy;
    mapping(address verifier => uint256 indexPlusOne) private _seatIndex;
    mapping(uint64 epoch => Round) private _rounds;

    constructor(IStakeVault vault_, uint64 genesis_, uint32 epochLength_, Terms memory terms_, address admin)
        EpochClock(genesis_, epochLength_)
        EntryPause(address(vault_))
    {
        _check(terms_);
        vault = vault_;
        _schedule.committeeSize = terms_.committeeSize;
        _schedule.seatStake = terms_.seatStake;
        _grantRole(DEFAULT_ADMIN_ROLE, admin);
    }

    // ------------------------------------------------------------------------------------------------------ seats

    /// @inheritdoc ISeatRegistry
    function takeSeat() external whenEntryOpen {
        uint256 needed = terms().seatStake;
        uint256 available = vault.stakeOf(msg.sender).active;
        // INVARIANT: every seat has stake behind it.
        require(available >= needed, SeatStakeTooLow(needed, available));
        uint64 current = currentEpoch();
        uint256 known = _seatIndex[msg.sender];
        if (known == 0) {
            known = _freeSeat(current) + 1;
            _seatIndex[msg.sender] = known;
            _seats[known - 1].verifier = msg.sender;
        } else {
            _requireRetakable(_seats[known - 1].exitAt, current);
        }
        Seat storage seat = _seats[known - 1];
        uint256 exitAt = seat.exitAt;
        if (exitAt != 0) --_leftSeats;
        // An exit that has not happened yet is taken back; otherwise the seat starts anew.
        if (exitAt <= current) seat.activeFrom = uint256(current + 1).toUint32();
        seat.exitAt = 0;
        emit SeatTaken(msg.sender, seat.activeFrom);
    }

    /// @inheritdoc ISeatRegistry
    function leaveSeat() external {
        _leave(msg.sender);
    }

    /// @inheritdoc ISeatRegistry
    function evictSeat(address verifier) external {
        uint256 needed = (uint256(terms().seatStake) * EVICT_BPS) / BPS;
        uint256 available = vault.stakeOf(verifier).active;
        // INVARIANT: nobody pushes out a verifier whose stake is in place.
        require(available < needed, SeatSupported(verifier, needed, available));
        _leave(verifier);
    }

    // ------------------------------------------------------------------------------------------------------ seeds

    /// @inheritdoc ISeatRegistry
    function armSeed(uint64 e) external {
        uint64 current = currentEpoch();
        // INVARIANT: the work of an epoch is committed before its randomness exists.
        require(e != 0 && e < current, EpochNotOver(e, current));
        Round storage r = _rounds[e];
        // INVARIANT: a seed is fixed once.
        require(r.seed == 0, SeedAlreadyFixed(e));
        uint256 armed = r.armedBlock;
        // INVARIANT: a target block is replaced only when its hash is out of reach, so that nobody picks among blocks.
        require(armed == 0 || block.number > armed + BLOCKHASH_WINDOW, SeedAlreadyArmed(armed));
        uint256 target = block.number + SEED_DELAY;
        // Block numbers stay far below 2^64.
        r.armedBlock = uint64(target);
        emit SeedArmed(e, target);
    }

    /// @inheritdoc ISeatRegistry
    function fixSeed(uint64 e) external {
        Round storage r = _rounds[e];
        // INVARIANT: a seed is fixed once.
        require(r.seed == 0, SeedAlreadyFixed(e));
        uint256 target = r.armedBlock;
        // INVARIANT: the block was chosen before its hash was known.
        require(target != 0, SeedNotArmed(e));
        require(block.number > target, SeedNotReady(target, block.number));
        require(block.number <= target + BLOCKHASH_WINDOW, SeedExpired(target, block.number));
        bytes32 seed = keccak256(abi.encode(blockhash(target), _entropy, e));
        r.seed = seed;
        r.committeeSize = terms().committeeSize;
        emit SeedFixed(e, seed);
    }

    /// @inheritdoc ISeatRegistry
    function stir(bytes32 salt) external onlyRole(COMMITTEE_ROLE) {
        _entropy = keccak256(abi.encode(_entropy, salt));
    }

    /// @inheritdoc ISeatRegistry
    function setTerms(Terms memory next) external onlyRole(DEFAULT_ADMIN_ROLE) {
        _check(next);
        Terms memory current = terms();
        uint64 from = currentEpoch() + 1;
        _schedule = Schedule(current.committeeSize, current.seatStake, next.committeeSize, next.seatStake, uint48(from));
        emit TermsScheduled(next, from);
    }

    // ------------------------------------------------------------------------------------------------------ views

    /// @inheritdoc ISeatRegistry
    function terms() public view returns (Terms memory) {
        Schedule memory s = _schedule;
        bool due = s.nextFrom != 0 && s.nextFrom <= currentEpoch();
        return due ? Terms(s.nextCommitteeSize, s.nextSeatStake) : Terms(s.committeeSize, s.seatStake);
    }

    /// @inheritdoc ISeatRegistry
    function seatCount(uint64 e) external view returns (uint256) {
        return seatsOf(e).length;
    }

    /// @inheritdoc ISeatRegistry
    function seatsOf(uint64 e) public view returns (address[] memory active) {
        uint256 n = _seats.length;
        active = new address[](n);
        uint256 count;
        for (uint256 i; i < n; ++i) {
            Seat storage seat = _seats[i];
            if (_isActive(seat, e)) active[count++] = seat.verifier;
        }
        // count <= n: only shortens the array.
        assembly ("memory-safe") {
            mstore(active, count)
        }
    }

    /// @inheritdoc ISeatRegistry
    function seatNumberOf(address verifier) external view returns (uint256) {
        return _seatIndex[verifier];
    }

    /// @inheritdoc ISeatRegistry
    function checkSeated(uint64 e, address verifier) external view {
        _requireSeed(e);
        _requireSeat(e, verifier);
    }

    /// @inheritdoc ISeatRegistry
    function seedOf(uint64 e) external view returns (bytes32) {
        return _rounds[e].seed;
    }

    /// @inheritdoc ISeatRegistry
    function armedBlock(uint64 e) external view returns (uint256) {
        return _rounds[e].armedBlock;
    }

    /// @inheritdoc ISeatRegistry
    function drawn(uint64 e, address node) public view returns (address[] memory) {
        return _rounds[e].seed == 0 ? new address[](0) : _draw(e, node, seatsOf(e));
    }

    /// @inheritdoc ISeatRegistry
    function isDrawn(uint64 e, address node, address verifier) external view returns (bool) {
        address[] memory members = drawn(e, node);
        return Draw.positionOf(members, verifier) < members.length;
    }

    /// @inheritdoc ISeatRegistry
    function placesOf(uint64 e, address verifier, address[] calldata nodes)
        external
        view
        returns (uint256 seat, Place[] memory places)
    {
        seat = _requireSeat(e, verifier);
        places = new Place[](nodes.length);
        if (_rounds[e].seed == 0) return (seat, places);
        address[] memory seats = seatsOf(e);
        for (uint256 i; i < nodes.length; ++i) {
            address[] memory members = _draw(e, nodes[i], seats);
            // Both are at most 15.
            places[i] = Place(uint128(members.length), uint128(Draw.positionOf(members, verifier)));
        }
    }

    /// @inheritdoc ISeatRegistry
    function sizesOf(uint64 e, address[] calldata nodes) external view returns (uint256[] memory sizes) {
        _requireSeed(e);
        address[] memory seats = seatsOf(e);
        uint256 size = _rounds[e].committeeSize;
        sizes = new uint256[](nodes.length);
        for (uint256 i; i < nodes.length; ++i) {
            sizes[i] = Draw.sizeFor(nodes[i], seats, size);
        }
    }

    // --------------------------------------------------------------------------------------------------- internal

    function _requireRetakable(uint256 exitAt, uint64 current) private view {
        // INVARIANT: one seat per verifier.
        require(exitAt != 0, SeatTakenAlready(msg.sender));
        uint256 from = exitAt + SEAT_HISTORY;
        // INVARIANT: the seats of an epoch do not change while its work is judged.
        require(exitAt > current || from <= current, SeatCooling(from));
    }

    /// @dev A seat that was left long ago before a new one, so that draws stay cheap.
    function _freeSeat(uint64 current) private returns (uint256 n) {
        n = _seats.length;
        if (_leftSeats != 0) {
            for (uint256 i; i < n; ++i) {
                Seat storage old = _seats[i];
                uint256 exitAt = old.exitAt;
                if (exitAt == 0 || exitAt + SEAT_HISTORY > current) continue;
                delete _seatIndex[old.verifier];
                return i;
            }
        }
        // INVARIANT: loops over the seats are bounded.
        require(n < MAX_SEATS, SeatsFull(MAX_SEATS));
        _seats.push();
    }

    function _leave(address verifier) private {
        uint256 known = _seatIndex[verifier];
        // INVARIANT: only a held seat can be left.
        require(known != 0 && _seats[known - 1].exitAt == 0, NoSeat(verifier));
        uint64 exitAt = currentEpoch() + 1;
        _seats[known - 1].exitAt = uint256(exitAt).toUint32();
        ++_leftSeats;
        emit SeatLeft(verifier, exitAt);
    }

    function _requireSeed(uint64 e) private view {
        // INVARIANT: committees follow from the seed.
        require(_rounds[e].seed != 0, SeedNotFixed(e));
    }

    function _requireSeat(uint64 e, address verifier) private view returns (uint256) {
        uint256 known = _seatIndex[verifier];
        // INVARIANT: seats of epoch e judge the work of epoch e.
        require(known != 0 && _isActive(_seats[known - 1], e), NotSeated(e, verifier));
        return known - 1;
    }

    function _draw(uint64 e, address node, address[] memory seats) private view returns (address[] memory) {
        Round storage r = _rounds[e];
        return Draw.draw(r.seed, node, seats, r.committeeSize);
    }

    function _isActive(Seat storage seat, uint64 e) private view returns (bool) {
        return seat.activeFrom <= e && (seat.exitAt == 0 || e < seat.exitAt);
    }

    function _check(Terms memory t) private pure {
        // INVARIANT: a tally word holds every member.
        require(
            t.committeeSize != 0 && t.committeeSize <= TallyWord.MAX_MEMBERS,
            ParamOutOfBounds("committeeSize", t.committeeSize, 1, TallyWord.MAX_MEMBERS)
        );
        // INVARIANT: every seat has stake behind it.
        require(t.seatStake != 0, ParamOutOfBounds("seatStake", t.seatStake, 1, type(uint96).max));
    }
}
