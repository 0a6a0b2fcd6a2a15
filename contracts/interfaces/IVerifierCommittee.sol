// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {ISeatRegistryErrors} from "./ISeatRegistry.sol";

/// @title IVerifierCommitteeTypes
interface IVerifierCommitteeTypes {
    /// @notice Parameters; ppm are parts per million, bps are parts per ten thousand.
    /// @param theta Trust at which a node is active, ppm.
    /// @param reentry Trust at which a node is active again after an exclusion, ppm.
    /// @param priorMass Weight of the prior in the trust score; 1e6 is the weight of one full audit.
    /// @param pMin Audit rate at full trust, ppm. @param pMax Audit rate at no trust, ppm.
    /// @param slashFirstBps Share of the stake slashed for a first severe failure.
    /// @param slashRepeatBps The same for every later one.
    /// @param noRevealBps Share of a verifier's stake slashed for not doing its duty.
    /// @param deviationBps Share of a verifier's stake slashed for a verdict or a tap digest against the final one.
    /// @param probationCapBps Most a session may hold on a node without trust, as a share of the node's stake.
    /// @param exclusionEpochs How long a failed node is kept out.
    struct Params {
        uint32 theta;
        uint32 reentry;
        uint64 priorMass;
        uint32 pMin;
        uint32 pMax;
        uint16 slashFirstBps;
        uint16 slashRepeatBps;
        uint16 noRevealBps;
        uint16 deviationBps;
        uint16 probationCapBps;
        uint32 exclusionEpochs;
    }

    /// @notice Trust of a node as stored, in one slot.
    /// @param alpha Weight of passed audits at `epoch`, 1e6 for one full audit.
    /// @param beta Weight of failed audits at `epoch`.
    /// @param epoch Work epoch of the last final verdict; decay since then is not applied yet.
    /// @param offences Severe failures so far.
    /// @param jailedUntil Epoch in which the exclusion ends; 0 when there is none to recover from.
    /// @param convictedIn Epoch of a conviction whose loss of trust is not applied yet; 0 when there is none.
    struct TrustState {
        uint64 alpha;
        uint64 beta;
        uint32 epoch;
        uint16 offences;
        uint32 jailedUntil;
        uint32 convictedIn;
    }

    /// @notice Verdicts about a node in an epoch.
    /// @param reveals How many members revealed.
    /// @param drawn How many members were drawn.
    /// @param finalized Whether the tally is closed.
    /// @param quorum Whether there were enough reveals.
    /// @param severe Whether two thirds of the drawn members said severe.
    /// @param passed Lower median of the passed units. @param failed Lower median of the failed units.
    /// @param tap Fingerprint that two thirds of the drawn members revealed with a pass; 0 when there is none.
    struct Tally {
        uint8 reveals;
        uint8 drawn;
        bool finalized;
        bool quorum;
        bool severe;
        uint16 passed;
        uint16 failed;
        uint32 tap;
    }
}

/// @title IVerifierCommitteeErrors
interface IVerifierCommitteeErrors is ISeatRegistryErrors {
    /// @notice Work of `epoch` goes through phase `wanted` in epoch + 1; now it is `phase` of `currentEpoch`.
    error WrongPhase(uint256 epoch, uint256 wanted, uint256 currentEpoch, uint256 phase);
    /// @notice A commitment cannot be 0.
    error EmptyCommitment();
    /// @notice The verifier has committed for the epoch.
    error AlreadyCommitted(uint256 epoch, address verifier);
    /// @notice There is no open commitment to reveal.
    error NothingToReveal(uint256 epoch, address verifier);
    /// @notice The revealed values do not hash to the commitment.
    error CommitmentMismatch(bytes32 committed, bytes32 revealed);
    /// @notice nodes, verdicts, taps and evidence need the same length.
    error LengthMismatch(uint256 nodes, uint256 verdicts, uint256 taps, uint256 evidence);
    /// @notice The address never registered as a node.
    error UnknownNode(address node);
    /// @notice The verifier was not drawn for the node.
    error NotDrawn(uint256 epoch, address node, address verifier);
    /// @notice A node stands twice in a list.
    error DuplicateNode(address node);
    /// @notice A severe verdict needs failed units.
    error InvalidVerdict(address node, uint256 verdict);
    /// @notice finalize has not run for the node.
    error NotFinalized(uint256 epoch, address node);
    /// @notice The verifier was judged for this.
    error AlreadyJudged(uint256 epoch, address verifier);
    /// @notice The list holds no duty that the verifier missed.
    error NothingToJudge(uint256 epoch, address verifier);
    /// @notice The node failed an audit and takes no sessions before epoch `until`.
    error NodeExcluded(address node, uint256 until);
    /// @notice A node without trust may back sessions up to `cap` only.
    error ProbationCapExceeded(address node, uint256 cap, uint256 value);
}

/// @title IVerifierCommitteeEvents
interface IVerifierCommitteeEvents is IVerifierCommitteeTypes {
    event ParamsScheduled(Params params, uint64 fromEpoch);
    event Committed(uint64 indexed epoch, address indexed verifier);
    event Revealed(
        uint64 indexed epoch,
        address indexed verifier,
        address[] nodes,
        uint16[] verdicts,
        bytes32[] taps,
        bytes32[] evidence
    );
    event TrustUpdated(
        address indexed node,
        uint64 indexed epoch,
        uint16 passed,
        uint16 failed,
        uint256 trustBefore,
        uint256 trustAfter
    );
    event NodeFailed(address indexed node, uint64 indexed epoch, bool severe, uint256 slashed, uint32 jailedUntil);
    event NodeConvicted(address indexed node, uint64 indexed epoch, uint32 jailedUntil);
    event NoQuorum(uint64 indexed epoch, address indexed node, uint256 reveals, uint256 needed);
    event VerifierJudged(
        uint64 indexed epoch, address indexed verifier, uint8 outcome, uint256 slashed, uint256 points
    );
}

/// @title IVerifierCommittee
/// @notice Verdicts by commit and reveal, trust, and slashing of nodes and verifiers.
/// @dev A verdict is severe << 15 | failedUnits (7 bits) << 8 | passedUnits (8 bits). A unit is a tenth of a full
/// audit. Beside a pass a verifier attests a tap digest: it shows that the verifier computed. A digest of 0 claims
/// nothing. Beside a failure a verifier attests 0; any other digest there is ignored.
interface IVerifierCommittee is IVerifierCommitteeErrors, IVerifierCommitteeEvents {
    /// @notice Commits to verdicts on the work of epoch `e`; phase 0 of epoch e+1.
    /// @param h keccak256(abi.encode(block.chainid, address(this), e, verifier, nodes, verdicts, taps, evidence, salt))
    function commit(uint64 e, bytes32 h) external;

    /// @notice Opens the commitment; phase 1 of epoch e+1.
    /// @param taps One tap digest for each node: the lower 32 bits are kept beside a pass, nothing beside a failure.
    function reveal(
        uint64 e,
        address[] calldata nodes,
        uint16[] calldata verdicts,
        bytes32[] calldata taps,
        bytes32[] calldata evidence,
        bytes32 salt
    ) external;

    /// @notice Excludes a node that was proven to have lied, as a severe failure does, and voids its trust from the
    /// next epoch on. DISPUTE_ROLE only.
    /// @return jailedUntil Epoch in which the exclusion ends.
    function convict(address node) external returns (uint32 jailedUntil);

    /// @notice Closes the tally of each node and moves its trust; phase 2 of epoch e+1. Skips what is closed. Anyone.
    function finalize(uint64 e, address[] calldata nodes) external;

    /// @notice Rewards or slashes a verifier for epoch `e`; phase 2 of epoch e+1. Anyone.
    /// @dev With exactly the revealed list: points, or a slash when a verdict is opposite to the median of the revealed
    /// ones, or when two thirds of a committee passed the node with one tap digest and this verifier passed it with
    /// another. With a list of nodes it was drawn for, that reached a quorum without it: a slash. Committed and not
    /// revealed: a slash.
    function judgeVerifier(uint64 e, address verifier, address[] calldata nodes) external;

    /// @notice Schedules parameters for the next epoch. DEFAULT_ADMIN_ROLE only.
    function setParams(Params calldata next) external;

    /// @notice Parameters in force.
    function params() external view returns (Params memory);

    /// @notice Commitment of a verifier; keccak256(abi.encode(nodes)) once revealed; 0 when there is none.
    function commitmentOf(uint64 e, address verifier) external view returns (bytes32);

    /// @notice Whether a verifier has revealed for epoch `e`.
    function hasRevealed(uint64 e, address verifier) external view returns (bool);

    /// @notice Tally of a node for epoch `e`.
    function tallyOf(uint64 e, address node) external view returns (Tally memory);

    /// @notice Whether reveals about a node wait for finalize.
    function isPending(uint64 e, address node) external view returns (bool);

    /// @notice Whether the tally of a node is closed.
    function isFinalized(uint64 e, address node) external view returns (bool);

    /// @notice Trust of a node now, ppm: 1e6 * alpha / (alpha + beta + priorMass), decayed up to the last ended epoch.
    function trustOf(address node) external view returns (uint256);

    /// @notice Trust of a node as stored.
    function trustState(address node)
        external
        view
        returns (uint64 alpha, uint64 beta, uint32 epoch, uint16 offences, uint32 jailedUntil);

    /// @notice 0 excluded, 1 probation, 2 active.
    function standingOf(address node) external view returns (uint8);

    /// @notice Share of a node's leaves to audit, ppm: pMin + (pMax - pMin) * (1e6 - trust) / 1e6.
    function auditRate(address node) external view returns (uint256);

    /// @notice Reverts unless every node may take part in a session that holds `value` wei.
    function checkStanding(address[] calldata nodes, uint256 value) external view;

    /// @notice Audited units credited to a verifier for epoch `e`.
    function pointsOf(uint64 e, address verifier) external view returns (uint256);

    /// @notice Sum of the points of epoch `e`.
    function totalPoints(uint64 e) external view returns (uint256);
}
