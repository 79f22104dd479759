//! Every maximum and every patience of the protocol, each with the sentence that derives it.

/// Operations in one batch: a region commits 512 rows in about one fsync, more gains nothing.
pub const BATCH_OPS_MAX: usize = 512;
/// Bytes of operations in one batch: a batch is the atomic unit, and small units never need partial versions.
pub const BATCH_BYTES_MAX: usize = 64 * 1024;
/// One operation; a batch must be able to hold it.
pub const OP_BYTES_MAX: usize = BATCH_BYTES_MAX;
/// A whole batch on the wire: operations, their lengths, and a header.
pub const BATCH_WIRE_BYTES_MAX: usize = BATCH_BYTES_MAX + BATCH_OPS_MAX * 4 + 256;
/// One control frame.
pub const CONTROL_BYTES_MAX: usize = 64 * 1024;
/// Bytes of records that a region aims at in one tail: about 1/4 s at 1 MB/s, so that acknowledgements keep coming.
pub const TAIL_BYTES_TARGET: usize = 256 * 1024;
/// One record; the largest are site settings and release sets.
pub const RECORD_BYTES_MAX: usize = 1024 * 1024;
/// Records in one tail, so that many tiny records stay bounded too.
pub const TAIL_RECORDS_MAX: usize = 16 * 1024;
/// Where a snapshot goes on, in words of the region's store: a key, and a Hello holds one for each log.
pub const RESUME_BYTES_MAX: usize = 1024;
/// A whole tail on the wire: a full target plus one largest record that overshoots it, plus framing.
pub const TAIL_WIRE_BYTES_MAX: usize =
    TAIL_BYTES_TARGET + RECORD_BYTES_MAX + TAIL_RECORDS_MAX * 24 + RESUME_BYTES_MAX + 256;

/// How long a node waits for more operations before it sends a batch that is not full, when others are in flight.
pub const LINGER_MS: u64 = 5;
/// Batches that a region keeps out of order: as many as the transport lets a node have open.
pub const REORDER_BATCHES_MAX: usize = 64;
/// Batches that a node has sent and that are not acknowledged: never more than a region can reorder.
pub const IN_FLIGHT_BATCHES_MAX: usize = REORDER_BATCHES_MAX;
/// Operations that a region joins into one apply call.
pub const APPLY_OPS_MAX: usize = 2_048;
/// Operations that a node may have sent and not seen committed, when all is well.
pub const CREDIT_OPS_MAX: u32 = 16_384;
/// Bytes of the same: half of the receive window of a connection, so that credit binds before the transport does.
pub const CREDIT_BYTES_MAX: u32 = 512 * 1024;
/// The least credit that a slow region gives: one full batch.
pub const CREDIT_OPS_MIN: u32 = BATCH_OPS_MAX as u32;
/// The least credit in bytes: one full batch.
pub const CREDIT_BYTES_MIN: u32 = BATCH_BYTES_MAX as u32;
/// A commit slower than this halves the credit.
pub const COMMIT_SLOW_MS: u64 = 250;
/// Tails of one log that a region has sent and that the node has not applied.
pub const TAILS_IN_FLIGHT_MAX: usize = 4;

/// Nodes greeted in a second, unless a region is set otherwise: a fleet of 500 is back in 2.5 s, and the store has most of its
/// time for operations meanwhile.
pub const GREETINGS_PER_SECOND: u32 = 200;
/// The most that a region may be set to: one in 100 µs.
pub const GREETINGS_PER_SECOND_MAX: u32 = 10_000;
/// Of those, one node gets one in so long: it redials no sooner, so that only one that falls again and again comes more often.
pub const NODE_GREETING_EVERY_MS: u64 = REDIAL_EVERY_MS;
/// And so many at once, after a quiet time: a restart, the redial after it, and the one after that.
pub const NODE_GREETINGS_BURST: u64 = 5;
/// A node that has to wait longer than this for its greeting comes back instead: well below [`GREETING_MS_MAX`].
pub const ADMISSION_WAIT_MS_MAX: u64 = 1_000;
/// Patience for Hello and for Welcome.
pub const GREETING_MS_MAX: u64 = 5_000;
/// Unacknowledged operations and no sign of life from the region for this long: try a second connection.
/// A silent outage otherwise costs about its own length again, because QUIC's probe time-out doubles.
pub const REDIAL_AFTER_MS: u64 = 1_500;
/// At most one redial per this.
pub const REDIAL_EVERY_MS: u64 = 1_000;
/// A gap that lasts this long is not reordering: ask for the missing batch.
pub const GAP_MS_MAX: u64 = 1_000;
/// While an apply call takes long, the region says so this often, so that the node does not redial a healthy link.
pub const PULSE_EVERY_MS: u64 = 500;
/// Tails without any applied acknowledgement for this long are sent again from the node's cursor.
pub const FEED_PATIENCE_MS: u64 = 30_000;
/// First pause after a failed apply or read, doubling to [`RETRY_MS_MAX`].
pub const RETRY_MS_MIN: u64 = 100;
/// Longest pause between tries.
pub const RETRY_MS_MAX: u64 = 5_000;
