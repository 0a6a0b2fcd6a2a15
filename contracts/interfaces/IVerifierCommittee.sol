// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {ISeatRegistryErrors} from "./ISeatRegistry.sol";

/// @title IVerifierCommitteeTypes
interface IVerifierCommitteeTypes {
    /// @notice Parameters; ppm are parts per million, bps are parts per ten thousand.
    /// @param theta Trust at which a node is active, ppm.
    /// @param reentry Trust at which a node is active again after an exclusion, ppm.
    /// @param priorMass Weight of the prior in the trust score; 1e6 is the weight of one full audit.
    /// @param pMin Audit rate at full trust, ppm.
    /// @param pMax Audit rate at no trust, ppm.
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
    /// @param passed Lower median of the passed units.
    /// @param failed Lower median of the failed units.
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
    /// @param epoch Epoch of the work.
    /// @param wanted Phase that the call needs: 0 commit, 1 reveal, 2 tally.
    /// @param currentEpoch Epoch of the block.
    /// @param phase Phase of that epoch.
    error WrongPhase(uint256 epoch, uint256 wanted, uint256 currentEpoch, uint256 phase);
    /// @notice A commitment cannot be 0.
    error EmptyCommitment();
    /// @notice The verifier has committed for the epoch.
    /// @param epoch Epoch of the work.
    /// @param verifier Account of the verifier.
    error AlreadyCommitted(uint256 epoch, address verifier);
    /// @notice There is no open commitment to reveal.
    /// @param epoch Epoch of the work.
    /// @param verifier Account of the verifier.
    error NothingToReveal(uint256 epoch, address verifier);
    /// @notice The revealed values do not hash to the commitment.
    /// @param committed Hash that was committed.
    /// @param revealed Hash of the revealed values.
    error CommitmentMismatch(bytes32 committed, bytes32 revealed);
    /// @notice nodes, verdicts, taps and evidence need the same length.
    /// @param nodes Length of nodes.
    /// @param verdicts Length of verdicts.
    /// @param taps Length of taps.
    /// @param evidence Length of evidence.
    error LengthMismatch(uint256 nodes, uint256 verdicts, uint256 taps, uint256 evidence);
    /// @notice The address never registered as a node.
    /// @param node Address in the call.
    error UnknownNode(address node);
    /// @notice The verifier was not drawn for the node.
    /// @param epoch Epoch of the work.
    /// @param node Account of the node.
    /// @param verifier Account of the verifier.
    error NotDrawn(uint256 epoch, address node, address verifier);
    /// @notice A node stands twice in a list.
    /// @param node Account of the node.
    error DuplicateNode(address node);
    /// @notice A severe verdict needs failed units.
    /// @param node Account of the node.
    /// @param verdict Packed verdict.
    error InvalidVerdict(address node, uint256 verdict);
    /// @notice finalize has not run for the node.
    /// @param epoch Epoch of the work.
    /// @param node Account of the node.
    error NotFinalized(uint256 epoch, address node);
    /// @notice The verifier was judged for this.
    /// @param epoch Epoch of the work.
    /// @param verifier Account of the verifier.
    error AlreadyJudged(uint256 epoch, address verifier);
    /// @notice The list holds no duty that the verifier missed.
    /// @param epoch Epoch of the work.
    /// @param verifier Account of the verifier.
    error NothingToJudge(uint256 epoch, address verifier);
    /// @notice The node failed an audit and takes no sessions before epoch `until`.
    /// @param node Account of the node.
    /// @param until Epoch in which the exclusion ends.
    error NodeExcluded(address node, uint256 until);
    /// @notice A node without trust may back sessions up to `cap` only.
    /// @param node Account of the node.
    /// @param cap Most that a session with the node may hold, wei.
    /// @param value Deposit of the session, wei.
    error ProbationCapExceeded(address node, uint256 cap, uint256 value);
}

/// @title IVerifierCommitteeEvents
interface IVerifierCommitteeEvents is IVerifierCommitteeTypes {
    /// @notice Other parameters were scheduled.
    /// @param params The new parameters.
    /// @param fromEpoch First epoch in which they count.
    event ParamsScheduled(Params params, uint64 fromEpoch);
    /// @notice A verifier committed to its verdicts.
    /// @param epoch Epoch of the work.
    /// @param verifier Account of the verifier.
    event Committed(uint64 indexed epoch, address indexed verifier);
    /// @notice A verifier revealed its verdicts; the lists have one entry for each node.
    /// @param epoch Epoch of the work.
    /// @param verifier Account of the verifier.
    /// @param nodes Nodes judged.
    /// @param verdicts Packed verdicts: severe << 15, failed units << 8, passed units.
    /// @param taps Tap digests; 0 claims nothing.
    /// @param evidence Hashes of the verifier's reports.
    event Revealed(
        uint64 indexed epoch,
        address indexed verifier,
        address[] nodes,
        uint16[] verdicts,
        bytes32[] taps,
        bytes32[] evidence
    );
    /// @notice A final verdict moved the trust of a node.
    /// @param node Account of the node.
    /// @param epoch Epoch of the work.
    /// @param passed Median of the passed units, tenths of a full audit.
    /// @param failed Median of the failed units, tenths of a full audit.
    /// @param trustBefore Trust before the verdict, decayed up to `epoch`, ppm.
    /// @param trustAfter Trust after the verdict, ppm.
    event TrustUpdated(
        address indexed node,
        uint64 indexed epoch,
        uint16 passed,
        uint16 failed,
        uint256 trustBefore,
        uint256 trustAfter
    );
    /// @notice The final verdict on a node has failed units.
    /// @param node Account of the node.
    /// @param epoch Epoch of the work.
    /// @param severe Whether two thirds of the drawn members said severe.
    /// @param slashed Stake taken from the node, wei; 0 unless severe.
    /// @param jailedUntil Epoch in which the exclusion ends; 0 when there is none to recover from.
    event NodeFailed(address indexed node, uint64 indexed epoch, bool severe, uint256 slashed, uint32 jailedUntil);
    /// @notice A node was excluded because signatures prove that it lied.
    /// @param node Account of the node.
    /// @param epoch Epoch of the conviction.
    /// @param jailedUntil Epoch in which the exclusion ends.
    event NodeConvicted(address indexed node, uint64 indexed epoch, uint32 jailedUntil);
    /// @notice Too few members revealed a verdict on a node; its trust does not move.
    /// @param epoch Epoch of the work.
    /// @param node Account of the node.
    /// @param reveals Members that revealed.
    /// @param needed Members that a quorum needs.
    event NoQuorum(uint64 indexed epoch, address indexed node, uint256 reveals, uint256 needed);
    /// @notice A verifier was rewarded or slashed for an epoch.
    /// @param epoch Epoch of the work.
    /// @param verifier Account of the verifier.
    /// @param outcome 0 in order, 1 missed a duty, 2 verdict against the final one, 3 tap digest against the final one.
    /// @param slashed Stake taken from the verifier, wei.
    /// @param points Audited units credited; 0 unless the outcome is 0.
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
