"""Every wait, bound and default of the client in one place. docs/clients.md shows them as a table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ClientConfig:
    """Waits are in seconds, sizes in bytes."""

    # Fail-over
    retries: int = 3  # further routes tried after the first one failed
    # Waits of a job
    connect_seconds: float = 10.0  # to connect to one node
    opening_seconds: float = 30.0  # for every node to accept the job
    first_token_seconds: float = 120.0  # for the first token: the nodes process the whole prompt first
    token_seconds: float = 30.0  # for each further token; after that the route counts as stuck
    receipts_seconds: float = 30.0  # for the commitments after the last token
    notice_seconds: float = 0.5  # for the end of a connection after a node complained about its neighbour
    # Waits of other requests
    probe_seconds: float = 3.0  # for the probes of all nodes, which run at once
    evidence_seconds: float = 10.0  # for evidence about a receipt that does not fit
    # Bounds on what nodes may make the client hold
    inbox_messages: int = 1024  # messages of one job that wait to be handled
    max_contradictions: int = 64  # contradicting commitments kept of one job
    # Payment
    advance_tokens: int = 16  # tokens paid before they arrive: the most that a cheating route can take
    voucher_tokens: int = 8  # a new voucher is signed once it pays for this many tokens more
    jobs_ahead: int = 8  # the deposit of a new session pays for so many jobs like the first one
    session_seconds: int = 24 * 3600  # from the opening of a session to its expiry
    session_margin_seconds: int = 600  # an open session is reused only if it lives at least this much longer
    # Routes
    explore_share: float = 0.05  # share of the jobs that try a node without trust, 0 to 1
