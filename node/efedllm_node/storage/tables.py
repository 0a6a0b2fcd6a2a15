"""The node's tables. Hashes, ids and signatures are raw bytes; wei are decimal text: SQLite integers end at 2^63."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, LargeBinary, MetaData, Table, Text

metadata = MetaData()

# status: what the chain said last, 0 none 1 open 2 closing 3 closed. billed: tokens of jobs that ended.
sessions = Table(
    "sessions",
    metadata,
    Column("session_id", LargeBinary(32), primary_key=True),
    Column("key_json", Text, nullable=False),
    Column("hop", Integer, nullable=False),
    Column("price", BigInteger, nullable=False),
    Column("deposit", Text, nullable=False),
    Column("settled", Text, nullable=False),
    Column("status", Integer, nullable=False),
    Column("cumulative", Text, nullable=False),
    Column("voucher_json", Text),
    Column("voucher_sig", LargeBinary(65)),
    Column("billed", BigInteger, nullable=False),
)

# status: open, done (committed), cancelled (nothing to commit), aborted. batch: the batch that holds its leaf.
jobs = Table(
    "jobs",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("job_id", LargeBinary(32), nullable=False, unique=True),
    Column("session_id", LargeBinary(32), ForeignKey("sessions.session_id"), nullable=False),
    Column("status", Text, nullable=False),
    Column("hop", Integer, nullable=False),
    Column("hops", Integer, nullable=False),
    Column("spec_json", Text, nullable=False),
    Column("spec_sig", LargeBinary(65), nullable=False),
    Column("route_json", Text, nullable=False),
    Column("prompt", LargeBinary),
    Column("emitted", LargeBinary),
    Column("in_row", Integer, nullable=False),
    Column("positions", Integer, nullable=False, default=0),
    Column("in_root", LargeBinary(32)),
    Column("out_root", LargeBinary(32)),
    Column("commit_json", Text),
    Column("commit_sig", LargeBinary(65)),
    Column("commit_digest", LargeBinary(32)),
    Column("salt", LargeBinary(32)),
    Column("epoch", BigInteger),
    Column("batch", Integer, ForeignKey("batches.number")),
    Column("place", Integer),
    Column("late", Integer, nullable=False, default=0),
    Column("fault", Text),
    Index("jobs_in_root", "in_root"),
    Index("jobs_out_root", "out_root"),
    Index("jobs_batch", "batch"),
    Index("jobs_status", "status", "batch"),
)

envelopes = Table(
    "envelopes",
    metadata,
    Column("job_id", LargeBinary(32), primary_key=True),
    Column("boundary", Integer, primary_key=True),
    Column("from_pos", Integer, primary_key=True),
    Column("n", Integer, nullable=False),
    Column("prev", LargeBinary(32), nullable=False),
    Column("chunk_hash", LargeBinary(32), nullable=False),
    Column("sender_sig", LargeBinary(65)),
    Column("receiver_sig", LargeBinary(65)),
)

# status: planned (stored before its transaction is sent), posted, superseded (another root took its number).
batches = Table(
    "batches",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("seq", BigInteger, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("root", LargeBinary(32), nullable=False),
    Column("count", Integer, nullable=False),
    Column("status", Text, nullable=False),
    Column("posted_at", BigInteger),
    Index("batches_seq", "seq", "status"),
)

# What was done for an epoch's reward.
rewards = Table(
    "rewards",
    metadata,
    Column("epoch", BigInteger, primary_key=True),
    Column("weighed", Integer, nullable=False, default=0),
    Column("claimed", Integer, nullable=False, default=0),
)

# The commitment of the previous hop for each job that we committed to: evidence if it signed another one as well.
predecessors = Table(
    "predecessors",
    metadata,
    Column("job_id", LargeBinary(32), ForeignKey("jobs.job_id"), primary_key=True),
    Column("commit_json", Text, nullable=False),
    Column("commit_sig", LargeBinary(65), nullable=False),
)

# By network: sessions opened up to `block` may have jobs that were signed with another file. `file`: inode number of
# this file.
origins = Table(
    "origins",
    metadata,
    Column("network", Text, primary_key=True),
    Column("block", BigInteger, nullable=False),
    Column("file", Text, nullable=False),
)
