// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {AccessControl} from "@openzeppelin/contracts/access/AccessControl.sol";
import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";
import {EntryPause} from "./EntryPause.sol";
import {EpochClock} from "./EpochClock.sol";
import {INodeRegistry} from "./interfaces/INodeRegistry.sol";
import {IStakeVault} from "./interfaces/IStakeVault.sol";
import {IVerifierCommittee} from "./interfaces/IVerifierCommittee.sol";
import {CommitteeParams} from "./libraries/CommitteeParams.sol";
import {Draw} from "./libraries/Draw.sol";
import {TallyWord} from "./libraries/TallyWord.sol";
import {Trust} from "./libraries/Trust.sol";

/// @title VerifierCommittee
/// @notice Draws verifiers for every node, collects their verdicts by commit and reveal, keeps the nodes' trust and
/// slashes: nodes for severe failures, verifiers for missed duties and for verdicts opposite to the final one.
/// @dev The work of epoch e is committed on, revealed and tallied in the three phases of epoch e+1, and never later, so
/// that what epoch e+2 pays out no longer moves.
contract VerifierCommittee is IVerifierCommittee, EpochClock, AccessControl, EntryPause {
    using SafeCast for uint256;
    using TallyWord for uint256;
    using Trust for TrustState;

    /// @dev Second word of an epoch; the seed is the first.
    struct Round {
        bytes32 seed;
        uint64 armedBlock;
        uint8 committeeSize;
    }

    uint256 private constant MAX_SEATS = 64;
    /// @dev The seats of an epoch are needed until its work is judged, one epoch later.
    uint64 private constant SEAT_HISTORY = 2;
    /// @dev A seat survives small slashes: it can be evicted below this share of the seat stake.
    uint256 private constant EVICT_BPS = 7_500;
    uint256 private constant SEED_DELAY = 2;
    uint256 private constant BLOCKHASH_WINDOW = 256;
    uint256 private constant BPS = 10_000;

    uint8 private constant EXCLUDED = 0;
    uint8 private constant PROBATION = 1;
    uint8 private constant ACTIVE = 2;

    uint8 private constant OUTCOME_OK = 0;
    uint8 private constant OUTCOME_NO_REVEAL = 1;
    uint8 private constant OUTCOME_DEVIATED = 2;

    /// @dev Offsets of the three seat bitmaps of an epoch in one word: revealed, judged, punished for a missed duty.
    uint256 private constant REVEALED = 0;
    uint256 private constant JUDGED = 64;
    uint256 private constant MISSED = 128;

    /// @notice Where the stakes lie.
    IStakeVault public immutable vault;
    /// @notice Says who is a node.
    INodeRegistry public immutable nodes;

    /// @dev Shares its slot with the entry switch.
    uint16 private _leftSeats;
    uint64 private _nextParamsFrom;
    /// @dev Which of the two versions is older: in force until the newer one is due.
    uint8 private _olderParams;
    Params[2] private _params;
    Seat[] private _seats;
    /// @dev Salts revealed so far; a second source for seeds besides block hashes.
    bytes32 private _entropy;
    mapping(address verifier => uint256 indexPlusOne) private _seatIndex;
    mapping(uint64 epoch => Round) private _rounds;
    mapping(uint64 epoch => mapping(address verifier => bytes32)) private _commitments;
    mapping(uint64 epoch => mapping(address node => uint256 tallyWord)) private _tallies;
    mapping(uint64 epoch => uint256 seatBitmaps) private _flags;
    mapping(address node => TrustState) private _trust;
    mapping(uint64 epoch => mapping(address verifier => uint256)) private _points;
    mapping(uint64 epoch => uint256) private _totalPoints;

    constructor(
        IStakeVault vault_,
        INodeRegistry nodes_,
        uint64 genesis_,
        uint32 epochLength_,
        Params memory params_,
        address admin
    ) EpochClock(genesis_, epochLength_) EntryPause(address(vault_)) {
        CommitteeParams.check(params_);
        vault = vault_;
        nodes = nodes_;
        _params[0] = params_;
        _grantRole(DEFAULT_ADMIN_ROLE, admin);
    }

    // ------------------------------------------------------------------------------------------------------ seats

    /// @inheritdoc IVerifierCommittee
    function takeSeat() external whenEntryOpen {
        uint256 needed = params().seatStake;
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

    /// @inheritdoc IVerifierCommittee
    function leaveSeat() external {
        _leave(msg.sender);
    }

    /// @inheritdoc IVerifierCommittee
    function evictSeat(address verifier) external {
        uint256 needed = (uint256(params().seatStake) * EVICT_BPS) / BPS;
        uint256 available = vault.stakeOf(verifier).active;
        // INVARIANT: nobody pushes out a verifier whose stake is in place.
        require(available < needed, SeatSupported(verifier, needed, available));
        _leave(verifier);
    }

    // ------------------------------------------------------------------------------------------------------ seeds

    /// @inheritdoc IVerifierCommittee
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

    /// @inheritdoc IVerifierCommittee
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
        r.committeeSize = params().committeeSize;
        emit SeedFixed(e, seed);
    }

    // ------------------------------------------------------------------------------------------- commit and reveal

    /// @inheritdoc IVerifierCommittee
    function commit(uint64 e, bytes32 h) external {
        _requirePhase(e, PHASE_COMMIT);
        _requireSeed(e);
        _requireSeat(e, msg.sender);
        // INVARIANT: 0 means no commitment.
        require(h != 0, EmptyCommitment());
        // INVARIANT: a commitment is final.
        require(_commitments[e][msg.sender] == 0, AlreadyCommitted(e, msg.sender));
        _commitments[e][msg.sender] = h;
        emit Committed(e, msg.sender);
    }

    /// @inheritdoc IVerifierCommittee
    function reveal(
        uint64 e,
        address[] calldata nodes_,
        uint16[] calldata verdicts,
        bytes32[] calldata evidence,
        bytes32 salt
    ) external {
        _requirePhase(e, PHASE_REVEAL);
        // INVARIANT: one verdict and one piece of evidence for each node.
        require(
            nodes_.length == verdicts.length && nodes_.length == evidence.length,
            LengthMismatch(nodes_.length, verdicts.length, evidence.length)
        );
        bytes32 committed = _commitments[e][msg.sender];
        uint256 flag = uint256(1) << (REVEALED + _requireSeat(e, msg.sender));
        // INVARIANT: a commitment is opened once.
        require(committed != 0 && _flags[e] & flag == 0, NothingToReveal(e, msg.sender));
        bytes32 h = keccak256(abi.encode(block.chainid, address(this), e, msg.sender, nodes_, verdicts, evidence, salt));
        // INVARIANT: what is revealed was decided before anybody revealed.
        require(h == committed, CommitmentMismatch(committed, h));
        _flags[e] |= flag;
        _commitments[e][msg.sender] = keccak256(abi.encode(nodes_));
        _entropy = keccak256(abi.encode(_entropy, salt));
        _record(e, nodes_, verdicts);
        emit Revealed(e, msg.sender, nodes_, verdicts, evidence);
    }

    // ------------------------------------------------------------------------------------------------------ tally

    /// @inheritdoc IVerifierCommittee
    function finalize(uint64 e, address[] calldata nodes_) external {
        _requirePhase(e, PHASE_TALLY);
        _requireSeed(e);
        Params memory p = params();
        address[] memory seats = seatsOf(e);
        uint256 size = _rounds[e].committeeSize;
        for (uint256 i; i < nodes_.length; ++i) {
            address node = nodes_[i];
            uint256 word = _tallies[e][node];
            if (word.isClosed()) continue;
            _tallies[e][node] = word.close();
            uint256 needed = _quorum(Draw.sizeFor(node, seats, size));
            uint256 reveals = word.reveals();
            if (reveals == 0 || reveals < needed) emit NoQuorum(e, node, reveals, needed);
            else _applyOutcome(e, node, word, needed, p);
        }
    }

    /// @inheritdoc IVerifierCommittee
    function judgeVerifier(uint64 e, address verifier, address[] calldata nodes_) external {
        _requirePhase(e, PHASE_TALLY);
        uint256 seat = _requireSeat(e, verifier);
        bytes32 committed = _commitments[e][verifier];
        bool revealed = _flags[e] & (uint256(1) << (REVEALED + seat)) != 0;
        if (revealed && committed == keccak256(abi.encode(nodes_))) {
            _raise(e, verifier, JUDGED + seat);
            _judgeVerdicts(e, verifier, nodes_);
        } else {
            // A verifier that committed and stayed silent is guilty without a list.
            if (revealed || committed == 0) _requireMissedDuty(e, verifier, nodes_);
            _raise(e, verifier, MISSED + seat);
            uint256 slashed = _slash(verifier, params().noRevealBps, _caseId("missed", e, verifier));
            emit VerifierJudged(e, verifier, OUTCOME_NO_REVEAL, slashed, 0);
        }
    }

    /// @inheritdoc IVerifierCommittee
    function setParams(Params memory next) external onlyRole(DEFAULT_ADMIN_ROLE) {
        CommitteeParams.check(next);
        uint256 current = _paramsIndex();
        uint64 from = currentEpoch() + 1;
        _olderParams = uint8(current);
        _params[1 - current] = next;
        _nextParamsFrom = from;
        emit ParamsScheduled(next, from);
    }

    // ------------------------------------------------------------------------------------------------------ views

    /// @inheritdoc IVerifierCommittee
    function params() public view returns (Params memory) {
        return _params[_paramsIndex()];
    }

    /// @inheritdoc IVerifierCommittee
    function seatCount(uint64 e) external view returns (uint256) {
        return seatsOf(e).length;
    }

    /// @inheritdoc IVerifierCommittee
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

    /// @inheritdoc IVerifierCommittee
    function seedOf(uint64 e) external view returns (bytes32) {
        return _rounds[e].seed;
    }

    /// @inheritdoc IVerifierCommittee
    function armedBlock(uint64 e) external view returns (uint256) {
        return _rounds[e].armedBlock;
    }

    /// @inheritdoc IVerifierCommittee
    function drawn(uint64 e, address node) public view returns (address[] memory) {
        return _rounds[e].seed == 0 ? new address[](0) : _draw(e, node, seatsOf(e));
    }

    /// @inheritdoc IVerifierCommittee
    function isDrawn(uint64 e, address node, address verifier) external view returns (bool) {
        address[] memory members = drawn(e, node);
        return Draw.positionOf(members, verifier) < members.length;
    }

    /// @inheritdoc IVerifierCommittee
    function commitmentOf(uint64 e, address verifier) external view returns (bytes32) {
        return _commitments[e][verifier];
    }

    /// @inheritdoc IVerifierCommittee
    function hasRevealed(uint64 e, address verifier) external view returns (bool) {
        uint256 known = _seatIndex[verifier];
        return known != 0 && _flags[e] & (uint256(1) << (REVEALED + known - 1)) != 0 && _commitments[e][verifier] != 0;
    }

    /// @inheritdoc IVerifierCommittee
    function tallyOf(uint64 e, address node) external view returns (Tally memory t) {
        uint256 word = _tallies[e][node];
        uint256 size = drawn(e, node).length;
        uint256 severe;
        (t.passed, t.failed, severe) = word.outcome();
        t.reveals = uint8(word.reveals());
        t.drawn = uint8(size);
        t.finalized = word.isClosed();
        t.quorum = t.reveals != 0 && t.reveals >= _quorum(size);
        t.severe = t.quorum && severe >= _quorum(size);
    }

    /// @inheritdoc IVerifierCommittee
    function isPending(uint64 e, address node) external view returns (bool) {
        uint256 word = _tallies[e][node];
        return word != 0 && !word.isClosed();
    }

    /// @inheritdoc IVerifierCommittee
    function isFinalized(uint64 e, address node) external view returns (bool) {
        return _tallies[e][node].isClosed();
    }

    /// @inheritdoc IVerifierCommittee
    function trustOf(address node) public view returns (uint256) {
        return _scoreOf(_stateOf(node), params().priorMass);
    }

    /// @inheritdoc IVerifierCommittee
    function trustState(address node)
        external
        view
        returns (uint64 alpha, uint64 beta, uint32 epoch, uint16 offences, uint32 jailedUntil)
    {
        TrustState memory t = _stateOf(node);
        return (t.alpha, t.beta, t.epoch, t.offences, t.jailedUntil);
    }

    /// @inheritdoc IVerifierCommittee
    function standingOf(address node) external view returns (uint8) {
        return _standing(_stateOf(node), params());
    }

    /// @inheritdoc IVerifierCommittee
    function auditRate(address node) external view returns (uint256) {
        Params memory p = params();
        uint256 trust = _scoreOf(_stateOf(node), p.priorMass);
        return p.pMin + (uint256(p.pMax - p.pMin) * (Trust.PPM - trust)) / Trust.PPM;
    }

    /// @inheritdoc IVerifierCommittee
    function checkStanding(address[] calldata nodes_, uint256 value) external view {
        Params memory p = params();
        for (uint256 i; i < nodes_.length; ++i) {
            address node = nodes_[i];
            TrustState memory t = _stateOf(node);
            uint8 standing = _standing(t, p);
            // INVARIANT: an excluded node takes no sessions.
            require(standing != EXCLUDED, NodeExcluded(node, t.jailedUntil));
            if (standing == PROBATION) {
                uint256 cap = (uint256(vault.stakeOf(node).active) * p.probationCapBps) / BPS;
                // INVARIANT: what a node without trust can steal is small against its stake.
                require(value <= cap, ProbationCapExceeded(node, cap, value));
            }
        }
    }

    /// @inheritdoc IVerifierCommittee
    function pointsOf(uint64 e, address verifier) external view returns (uint256) {
        return _points[e][verifier];
    }

    /// @inheritdoc IVerifierCommittee
    function totalPoints(uint64 e) external view returns (uint256) {
        return _totalPoints[e];
    }

    // --------------------------------------------------------------------------------------------------- internal

    function _paramsIndex() private view returns (uint256) {
        uint64 from = _nextParamsFrom;
        bool due = from != 0 && from <= currentEpoch();
        return due ? 1 - _olderParams : _olderParams;
    }

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

    function _record(uint64 e, address[] calldata nodes_, uint16[] calldata verdicts) private {
        address[] memory seats = seatsOf(e);
        for (uint256 i; i < nodes_.length; ++i) {
            address node = nodes_[i];
            uint16 verdict = verdicts[i];
            // INVARIANT: trust is about nodes.
            require(nodes.statusOf(node) != 0, UnknownNode(node));
            // INVARIANT: severe means that something failed.
            require(!TallyWord.isSevere(verdict) || TallyWord.failedUnits(verdict) != 0, InvalidVerdict(node, verdict));
            address[] memory members = _draw(e, node, seats);
            uint256 position = Draw.positionOf(members, msg.sender);
            // INVARIANT: only the committee judges.
            require(position < members.length, NotDrawn(e, node, msg.sender));
            uint256 word = _tallies[e][node];
            // INVARIANT: at most one verdict for each member and node.
            require(!word.has(position), DuplicateNode(node));
            _tallies[e][node] = word.add(position, verdict);
        }
    }

    function _applyOutcome(uint64 e, address node, uint256 word, uint256 needed, Params memory p) private {
        (uint16 passed, uint16 failed, uint256 severeVotes) = word.outcome();
        TrustState memory t = _stateOf(node);
        t.decay(e);
        uint256 trustBefore = t.score(p.priorMass);
        t.count(passed, failed);
        t.epoch = uint256(e).toUint32();
        uint256 trustAfter = t.score(p.priorMass);
        emit TrustUpdated(node, e, passed, failed, trustBefore, trustAfter);
        // needed is two thirds of the drawn members, who also hold the median: severe implies failed != 0.
        bool severe = severeVotes >= needed;
        if (failed != 0) {
            _exclude(t, e, trustAfter < p.theta, severe, p.exclusionEpochs);
        } else if (t.jailedUntil != 0 && t.jailedUntil <= currentEpoch() && trustAfter >= p.reentry) {
            // The exclusion is over and trust is back: theta counts again instead of the higher re-entry mark.
            t.jailedUntil = 0;
        }
        _trust[node] = t;
        if (failed != 0) _punish(e, node, t, severe, p);
    }

    /// @dev Updates `t` in memory.
    function _exclude(TrustState memory t, uint64 e, bool untrusted, bool severe, uint256 epochs) private pure {
        if (untrusted || severe) {
            uint256 until = e + epochs;
            if (until > t.jailedUntil) t.jailedUntil = until.toUint32();
        }
        if (severe && t.offences != type(uint16).max) ++t.offences;
    }

    function _punish(uint64 e, address node, TrustState memory t, bool severe, Params memory p) private {
        uint256 slashed;
        if (severe) {
            slashed = _slash(node, t.offences == 1 ? p.slashFirstBps : p.slashRepeatBps, _caseId("severe", e, node));
            vault.jail(node, epochStart(t.jailedUntil).toUint40());
        }
        emit NodeFailed(node, e, severe, slashed, t.jailedUntil);
    }

    function _judgeVerdicts(uint64 e, address verifier, address[] calldata nodes_) private {
        address[] memory seats = seatsOf(e);
        uint256 points;
        bool deviated;
        for (uint256 i; i < nodes_.length; ++i) {
            (uint256 units, bool opposite) = _compare(e, verifier, nodes_[i], seats);
            points += units;
            deviated = deviated || opposite;
        }
        uint256 slashed;
        if (deviated) {
            points = 0;
            slashed = _slash(verifier, params().deviationBps, _caseId("deviated", e, verifier));
        } else {
            _points[e][verifier] = points;
            _totalPoints[e] += points;
        }
        emit VerifierJudged(e, verifier, deviated ? OUTCOME_DEVIATED : OUTCOME_OK, slashed, points);
    }

    /// @dev Points are the audited units of the final verdict, so that claiming more units pays nothing.
    function _compare(uint64 e, address verifier, address node, address[] memory seats)
        private
        view
        returns (uint256 units, bool opposite)
    {
        uint256 word = _tallies[e][node];
        // INVARIANT: verifiers are measured by final verdicts only.
        require(word.isClosed(), NotFinalized(e, node));
        address[] memory members = _draw(e, node, seats);
        if (word.reveals() < _quorum(members.length)) return (0, false);
        (uint16 passed, uint16 failed,) = word.outcome();
        uint16 own = TallyWord.failedUnits(word.verdictOf(Draw.positionOf(members, verifier)));
        return (uint256(passed) + failed, (own != 0) != (failed != 0));
    }

    /// @dev A duty is missed when the others reached a quorum on a node without this drawn member.
    function _requireMissedDuty(uint64 e, address verifier, address[] calldata nodes_) private view {
        // INVARIANT: an accusation names a duty.
        require(nodes_.length != 0, NothingToJudge(e, verifier));
        for (uint256 i; i < nodes_.length; ++i) {
            address[] memory members = drawn(e, nodes_[i]);
            uint256 position = Draw.positionOf(members, verifier);
            // INVARIANT: only members have a duty.
            require(position < members.length, NotDrawn(e, nodes_[i], verifier));
            uint256 word = _tallies[e][nodes_[i]];
            // INVARIANT: there was something to audit, as a closed quorum shows.
            require(word.isClosed(), NotFinalized(e, nodes_[i]));
            require(!word.has(position) && word.reveals() >= _quorum(members.length), NothingToJudge(e, verifier));
        }
    }

    function _raise(uint64 e, address verifier, uint256 bit) private {
        uint256 flag = uint256(1) << bit;
        // INVARIANT: a verifier is judged once for its verdicts and once for missed duties.
        require(_flags[e] & flag == 0, AlreadyJudged(e, verifier));
        _flags[e] |= flag;
    }

    /// @dev Rounds against the offender; the vault clamps and burns all of it.
    function _slash(address op, uint256 bps, bytes32 caseId) private returns (uint256 slashed) {
        IStakeVault.Stake memory s = vault.stakeOf(op);
        uint256 amount = Math.ceilDiv((uint256(s.active) + s.unbonding) * bps, BPS);
        (slashed,) = vault.slash(op, amount, address(0), 0, caseId);
    }

    function _caseId(bytes32 kind, uint64 e, address who) private pure returns (bytes32) {
        return keccak256(abi.encode(kind, e, who));
    }

    function _requirePhase(uint64 e, uint8 wanted) private view {
        uint64 current = currentEpoch();
        uint8 now_ = phase();
        // INVARIANT: each step has its third of epoch e+1.
        require(current == uint256(e) + 1 && now_ == wanted, WrongPhase(e, wanted, current, now_));
    }

    function _requireSeed(uint64 e) private view {
        // INVARIANT: committees follow from the seed.
        require(_rounds[e].seed != 0, SeedNotFixed(e));
    }

    function _requireSeat(uint64 e, address verifier) private view returns (uint256 index) {
        uint256 known = _seatIndex[verifier];
        // INVARIANT: seats of epoch e judge the work of epoch e.
        require(known != 0 && _isActive(_seats[known - 1], e), NotSeated(e, verifier));
        return known - 1;
    }

    function _standing(TrustState memory t, Params memory p) private view returns (uint8) {
        if (t.jailedUntil > currentEpoch()) return EXCLUDED;
        uint256 mark = t.jailedUntil == 0 ? p.theta : p.reentry;
        return _scoreOf(t, p.priorMass) >= mark ? ACTIVE : PROBATION;
    }

    /// @dev The last ended epoch is the newest whose work can be judged, so decay runs up to it.
    function _scoreOf(TrustState memory t, uint256 priorMass) private view returns (uint256) {
        t.decay(currentEpoch() - 1);
        return t.score(priorMass);
    }

    function _draw(uint64 e, address node, address[] memory seats) private view returns (address[] memory) {
        Round storage r = _rounds[e];
        return Draw.draw(r.seed, node, seats, r.committeeSize);
    }

    function _stateOf(address node) private view returns (TrustState memory) {
        return _trust[node];
    }

    function _isActive(Seat storage seat, uint64 e) private view returns (bool) {
        return seat.activeFrom <= e && (seat.exitAt == 0 || e < seat.exitAt);
    }

    function _quorum(uint256 members) private pure returns (uint256) {
        return Math.ceilDiv(2 * members, 3);
    }
}
