// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";
import {EpochClock} from "./EpochClock.sol";
import {TrustLedger} from "./TrustLedger.sol";
import {INodeRegistry} from "./interfaces/INodeRegistry.sol";
import {ISeatRegistry, ISeatRegistryTypes} from "./interfaces/ISeatRegistry.sol";
import {IStakeVault} from "./interfaces/IStakeVault.sol";
import {IVerifierCommittee} from "./interfaces/IVerifierCommittee.sol";
import {TallyWord} from "./libraries/TallyWord.sol";
import {TapWord} from "./libraries/TapWord.sol";

/// @title VerifierCommittee
/// @notice Collects the verdicts of the drawn verifiers by commit and reveal, keeps the nodes' trust and slashes: nodes
/// for severe failures, verifiers for missed duties, for verdicts opposite to the final one and for passes that they
/// did not compute.
/// @dev The work of epoch e is committed on, revealed and tallied in the three phases of epoch e+1, and never later, so
/// that what epoch e+2 pays out no longer moves.
contract VerifierCommittee is TrustLedger {
    using TallyWord for uint256;
    using TapWord for TapWord.Words;

    uint8 private constant OUTCOME_OK = 0;
    uint8 private constant OUTCOME_NO_REVEAL = 1;
    uint8 private constant OUTCOME_DEVIATED = 2;
    uint8 private constant OUTCOME_TAP_DIFFERS = 3;

    /// @dev Offsets of the three seat bitmaps of an epoch in one word: revealed, judged, punished for a missed duty.
    uint256 private constant REVEALED = 0;
    uint256 private constant JUDGED = 64;
    uint256 private constant MISSED = 128;

    bytes32 public constant DISPUTE_ROLE = keccak256("DISPUTE_ROLE");

    /// @notice Says who is a node.
    INodeRegistry public immutable nodes;
    /// @notice Draws the verifiers.
    ISeatRegistry public immutable seats;

    mapping(uint64 epoch => mapping(address verifier => bytes32)) private _commitments;
    mapping(uint64 epoch => mapping(address node => uint256 tallyWord)) private _tallies;
    mapping(uint64 epoch => mapping(address node => TapWord.Words)) private _taps;
    mapping(uint64 epoch => uint256 seatBitmaps) private _flags;
    mapping(uint64 epoch => mapping(address verifier => uint256)) private _points;
    mapping(uint64 epoch => uint256) private _totalPoints;

    constructor(
        IStakeVault vault_,
        INodeRegistry nodes_,
        ISeatRegistry seats_,
        uint64 genesis_,
        uint32 epochLength_,
        Params memory params_,
        address admin
    ) EpochClock(genesis_, epochLength_) TrustLedger(vault_, params_, admin) {
        nodes = nodes_;
        seats = seats_;
    }

    // ------------------------------------------------------------------------------------------- commit and reveal

    /// @inheritdoc IVerifierCommittee
    function commit(uint64 e, bytes32 h) external {
        _requirePhase(e, PHASE_COMMIT);
        seats.checkSeated(e, msg.sender);
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
        bytes32[] calldata taps,
        bytes32[] calldata evidence,
        bytes32 salt
    ) external {
        _requirePhase(e, PHASE_REVEAL);
        // INVARIANT: one verdict, one tap digest and one piece of evidence for each node.
        require(
            nodes_.length == verdicts.length && nodes_.length == taps.length && nodes_.length == evidence.length,
            LengthMismatch(nodes_.length, verdicts.length, taps.length, evidence.length)
        );
        (uint256 seat, ISeatRegistryTypes.Place[] memory places) = seats.placesOf(e, msg.sender, nodes_);
        _open(e, seat, keccak256(_preimage(e, nodes_, verdicts, taps, evidence, salt)));
        _commitments[e][msg.sender] = keccak256(abi.encode(nodes_));
        seats.stir(salt);
        for (uint256 i; i < nodes_.length; ++i) {
            _record(e, nodes_[i], verdicts[i], taps[i], places[i]);
        }
        emit Revealed(e, msg.sender, nodes_, verdicts, taps, evidence);
    }

    /// @inheritdoc IVerifierCommittee
    function convict(address node) external onlyRole(DISPUTE_ROLE) returns (uint32 jailedUntil) {
        return _convict(node);
    }

    // ------------------------------------------------------------------------------------------------------ tally

    /// @inheritdoc IVerifierCommittee
    function finalize(uint64 e, address[] calldata nodes_) external {
        _requirePhase(e, PHASE_TALLY);
        uint256[] memory sizes = seats.sizesOf(e, nodes_);
        Params memory p = params();
        for (uint256 i; i < nodes_.length; ++i) {
            address node = nodes_[i];
            uint256 word = _tallies[e][node];
            if (word.isClosed()) continue;
            _tallies[e][node] = word.close();
            uint256 needed = _quorum(sizes[i]);
            uint256 reveals = word.reveals();
            if (reveals == 0 || reveals < needed) {
                emit NoQuorum(e, node, reveals, needed);
                continue;
            }
            (uint16 passed, uint16 failed, uint256 severeVotes) = word.outcome();
            // needed is two thirds of the drawn members, who also hold the median: severe implies failed != 0.
            _applyVerdict(e, node, passed, failed, severeVotes >= needed, p);
        }
    }

    /// @inheritdoc IVerifierCommittee
    function judgeVerifier(uint64 e, address verifier, address[] calldata nodes_) external {
        _requirePhase(e, PHASE_TALLY);
        (uint256 seat, ISeatRegistryTypes.Place[] memory places) = seats.placesOf(e, verifier, nodes_);
        bytes32 committed = _commitments[e][verifier];
        bool revealed = _flags[e] & (uint256(1) << (REVEALED + seat)) != 0;
        if (revealed && committed == keccak256(abi.encode(nodes_))) {
            _raise(e, verifier, JUDGED + seat);
            _judgeVerdicts(e, verifier, nodes_, places);
        } else {
            // A verifier that committed and stayed silent is guilty without a list.
            if (revealed || committed == 0) _requireMissedDuty(e, verifier, nodes_, places);
            _raise(e, verifier, MISSED + seat);
            uint256 slashed = _slash(verifier, params().noRevealBps, "missed", e);
            emit VerifierJudged(e, verifier, OUTCOME_NO_REVEAL, slashed, 0);
        }
    }

    // ------------------------------------------------------------------------------------------------------ views

    /// @inheritdoc IVerifierCommittee
    function commitmentOf(uint64 e, address verifier) external view returns (bytes32) {
        return _commitments[e][verifier];
    }

    /// @inheritdoc IVerifierCommittee
    function hasRevealed(uint64 e, address verifier) external view returns (bool) {
        uint256 known = seats.seatNumberOf(verifier);
        return known != 0 && _flags[e] & (uint256(1) << (REVEALED + known - 1)) != 0 && _commitments[e][verifier] != 0;
    }

    /// @inheritdoc IVerifierCommittee
    function tallyOf(uint64 e, address node) external view returns (Tally memory t) {
        uint256 word = _tallies[e][node];
        uint256 size = seats.drawn(e, node).length;
        uint256 severe;
        (t.passed, t.failed, severe) = word.outcome();
        t.reveals = uint8(word.reveals());
        t.drawn = uint8(size);
        t.finalized = word.isClosed();
        t.quorum = t.reveals != 0 && t.reveals >= _quorum(size);
        t.severe = t.quorum && severe >= _quorum(size);
        if (t.quorum) {
            (uint256 low, uint256 high) = _taps[e][node].load(size);
            t.tap = TapWord.agreed(low, high, size, _quorum(size));
        }
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
    function pointsOf(uint64 e, address verifier) external view returns (uint256) {
        return _points[e][verifier];
    }

    /// @inheritdoc IVerifierCommittee
    function totalPoints(uint64 e) external view returns (uint256) {
        return _totalPoints[e];
    }

    // --------------------------------------------------------------------------------------------------- internal

    function _preimage(
        uint64 e,
        address[] calldata nodes_,
        uint16[] calldata verdicts,
        bytes32[] calldata taps,
        bytes32[] calldata evidence,
        bytes32 salt
    ) private view returns (bytes memory) {
        return abi.encode(block.chainid, address(this), e, msg.sender, nodes_, verdicts, taps, evidence, salt);
    }

    function _open(uint64 e, uint256 seat, bytes32 h) private {
        bytes32 committed = _commitments[e][msg.sender];
        uint256 flag = uint256(1) << (REVEALED + seat);
        uint256 flags = _flags[e];
        // INVARIANT: a commitment is opened once.
        require(committed != 0 && flags & flag == 0, NothingToReveal(e, msg.sender));
        // INVARIANT: what is revealed was decided before anybody revealed.
        require(h == committed, CommitmentMismatch(committed, h));
        _flags[e] = flags | flag;
    }

    function _record(uint64 e, address node, uint16 verdict, bytes32 tap, ISeatRegistryTypes.Place memory place)
        private
    {
        uint256 position = place.position;
        // INVARIANT: trust is about nodes.
        require(nodes.statusOf(node) != 0, UnknownNode(node));
        // INVARIANT: severe means that something failed.
        require(!TallyWord.isSevere(verdict) || TallyWord.failedUnits(verdict) != 0, InvalidVerdict(node, verdict));
        // INVARIANT: only the committee judges.
        require(position < place.size, NotDrawn(e, node, msg.sender));
        uint256 word = _tallies[e][node];
        // INVARIANT: at most one verdict for each member and node.
        require(!word.has(position), DuplicateNode(node));
        _tallies[e][node] = word.add(position, verdict);
        // INVARIANT: a digest counts only beside a pass. A verifier that met a failure did not see every tap.
        if (TallyWord.failedUnits(verdict) != 0) return;
        uint32 print = TapWord.fingerprint(tap);
        if (print != 0) _taps[e][node].set(position, print);
    }

    function _judgeVerdicts(
        uint64 e,
        address verifier,
        address[] calldata nodes_,
        ISeatRegistryTypes.Place[] memory places
    ) private {
        uint256 points;
        uint8 outcome = OUTCOME_OK;
        for (uint256 i; i < nodes_.length; ++i) {
            (uint256 units, uint8 found) = _compare(e, nodes_[i], places[i]);
            points += units;
            if (found != OUTCOME_OK && outcome != OUTCOME_DEVIATED) outcome = found;
        }
        uint256 slashed;
        if (outcome != OUTCOME_OK) {
            points = 0;
            slashed = _slash(verifier, params().deviationBps, "deviated", e);
        } else {
            _points[e][verifier] = points;
            _totalPoints[e] += points;
        }
        emit VerifierJudged(e, verifier, outcome, slashed, points);
    }

    /// @dev Points are the audited units of the final verdict, so that claiming more units pays nothing. Digests are
    /// compared only between members that passed the node.
    function _compare(uint64 e, address node, ISeatRegistryTypes.Place memory place)
        private
        view
        returns (uint256 units, uint8 found)
    {
        uint256 word = _tallies[e][node];
        // INVARIANT: verifiers are measured by final verdicts only.
        require(word.isClosed(), NotFinalized(e, node));
        uint256 needed = _quorum(place.size);
        if (word.reveals() < needed) return (0, OUTCOME_OK);
        (uint16 passed, uint16 failed,) = word.outcome();
        units = uint256(passed) + failed;
        bool ownPass = TallyWord.failedUnits(word.verdictOf(place.position)) == 0;
        if (ownPass != (failed == 0)) return (units, OUTCOME_DEVIATED);
        // Where the final verdict is a failure, no digest has two thirds of the members: most of them have none.
        if (!ownPass) return (units, OUTCOME_OK);
        (uint256 low, uint256 high) = _taps[e][node].load(place.size);
        uint32 agreed = TapWord.agreed(low, high, place.size, needed);
        if (agreed != 0 && TapWord.printOf(low, high, place.position) != agreed) found = OUTCOME_TAP_DIFFERS;
    }

    /// @dev A duty is missed when the others reached a quorum on a node without this drawn member.
    function _requireMissedDuty(
        uint64 e,
        address verifier,
        address[] calldata nodes_,
        ISeatRegistryTypes.Place[] memory places
    ) private view {
        // INVARIANT: an accusation names a duty.
        require(nodes_.length != 0, NothingToJudge(e, verifier));
        for (uint256 i; i < nodes_.length; ++i) {
            // INVARIANT: only members have a duty.
            require(places[i].position < places[i].size, NotDrawn(e, nodes_[i], verifier));
            uint256 word = _tallies[e][nodes_[i]];
            // INVARIANT: there was something to audit, as a closed quorum shows.
            require(word.isClosed(), NotFinalized(e, nodes_[i]));
            require(
                !word.has(places[i].position) && word.reveals() >= _quorum(places[i].size), NothingToJudge(e, verifier)
            );
        }
    }

    function _raise(uint64 e, address verifier, uint256 bit) private {
        uint256 flag = uint256(1) << bit;
        // INVARIANT: a verifier is judged once for its verdicts and once for missed duties.
        require(_flags[e] & flag == 0, AlreadyJudged(e, verifier));
        _flags[e] |= flag;
    }

    function _requirePhase(uint64 e, uint8 wanted) private view {
        uint64 current = currentEpoch();
        uint8 now_ = phase();
        // INVARIANT: each step has its third of epoch e+1.
        require(current == uint256(e) + 1 && now_ == wanted, WrongPhase(e, wanted, current, now_));
    }

    function _quorum(uint256 members) private pure returns (uint256) {
        return Math.ceilDiv(2 * members, 3);
    }
}
