//! Every limit and default with its unit in its name, why it has this value, and how they relate.

use std::time::Duration;

/// Logical partitions of the namespace. Fixed for the life of a cluster.
pub const SLOT_COUNT: u16 = 1024;

// Names and files.
/// Longest name of a directory entry, as on ext4.
pub const NAME_LEN_BYTES_MAX: usize = 255;
/// Longest symlink target, PATH_MAX without its NUL.
pub const SYMLINK_LEN_BYTES_MAX: usize = 4095;
/// Most names of one inode, as on ext4.
pub const LINK_COUNT_MAX: u32 = 65_000;
/// Largest file: 64 TiB.
pub const FILE_SIZE_BYTES_MAX: u64 = 1 << 46;
/// Longest name of an extended attribute, the kernel's own limit.
pub const XATTR_NAME_LEN_BYTES_MAX: usize = 255;
/// Largest value of an extended attribute, the kernel's own limit.
pub const XATTR_VALUE_BYTES_MAX: usize = 65_536;
/// All names of the extended attributes of one inode together, what listxattr(2) can return.
pub const XATTR_LIST_BYTES_MAX: usize = 65_536;
/// Entries of the trash in one reply, or dropped by one command.
pub const TRASH_ENTRIES_MAX: usize = 512;
/// Longest path that is kept of what is in the trash: the kernel's own limit.
pub const TRASH_PATH_BYTES_MAX: usize = 4096;
/// Entries in one readdir reply of a master: keeps the reply below [`FRAME_HEADER_BYTES_MAX`].
pub const READDIR_ENTRIES_MAX: usize = 1024;
/// Entries of such a reply that come with their inodes, at most: reading these takes the leader about a millisecond.
pub const READDIR_INODES_MAX: usize = 256;
/// Access times in one mutation, at most: applying these takes about a millisecond.
pub const ACCESSES_MAX: usize = 256;

// Data.
/// Unit of checksums and of the chunk store's space.
pub const BLOCK_SIZE: usize = 4096;
/// Bytes of a file in one chunk.
pub const CHUNK_SIZE_BYTES: u64 = 64 << 20;
/// Copies of a chunk unless the policy says otherwise.
pub const REPLICAS_DEFAULT: usize = 3;
/// Most data in one request: what the kernel hands to FUSE at once.
pub const IO_BYTES_MAX: usize = 1 << 20;
/// With less space than this at some datanode, writes do not wait in a client's memory: they would find out too late
/// that there is no room. Several times what may be waiting there.
pub const SPACE_SHORT_BYTES: u64 = 256 << 20;
/// Chunks that one allocation asks for at most, so that a Raft entry stays small.
pub const CHUNKS_PER_ALLOCATION_MAX: u32 = 64;
/// Replica groups whose primary is one datanode: spreads load when a node fails.
pub const PRIMARIES_PER_DATANODE: usize = 4;

// Frames.
/// Longest typed header of a frame; checked before anything is allocated.
pub const FRAME_HEADER_BYTES_MAX: usize = 1 << 20;
/// Longest payload of a frame: the largest request and one block of alignment.
pub const FRAME_PAYLOAD_BYTES_MAX: usize = IO_BYTES_MAX + BLOCK_SIZE;
/// How long the first frames of a connection may take.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a TCP connect may take.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long an open connection may stay silent after a request before the request is tried
/// elsewhere.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

// Memory.
/// Buffers from this size on are kept for reuse; smaller ones are cheap to allocate.
pub const POOLED_BYTES_MIN: usize = 64 << 10;
/// Largest buffer that is kept for reuse: the smallest class that holds any frame's payload.
pub const POOLED_BYTES_MAX: usize = 2 << 20;
/// Bytes of unused buffers kept per size class (powers of two).
pub const POOLED_CLASS_BYTES_MAX: usize = 16 << 20;

// Sessions.
/// Outcomes kept per session; also the number of mutations a client may have in flight.
pub const SESSION_WINDOW: u64 = 1024;
/// Numbers of inodes that a session reserves at once, to make inodes in its memory.
pub const INODES_RESERVED_MAX: u32 = 4096;
/// Silence after which a session is expired.
pub const SESSION_TIMEOUT: Duration = Duration::from_secs(60);
/// Sessions at a time, those included that have ended and are not shut out everywhere yet. A fence lists them.
pub const SESSIONS_MAX: usize = 16_384;
/// How often a client shows that it lives.
pub const SESSION_KEEPALIVE: Duration = Duration::from_secs(2);
/// Inodes in each list of one report of open files; a longer list goes in parts.
pub const OPENS_PER_REPORT_MAX: usize = 32_768;
/// Open files of all clients together; further ones are refused with ENFILE.
pub const OPENS_MAX: usize = 1 << 20;

// Locks.
/// Locks on one inode, of all owners together; further ones are refused with ENOLCK.
pub const LOCKS_PER_INODE_MAX: usize = 1024;
/// Inodes on which one session has locks, or keeps the account of them; further ones are refused with ENOLCK.
pub const LOCKED_INODES_PER_SESSION_MAX: u32 = 16_384;
/// Callers of all sessions that wait for locks; further ones are refused with ENOLCK.
pub const LOCK_WAITS_MAX: usize = 4096;
/// How long a master leaves the question unanswered whether a lock can be had.
pub const LOCK_WAIT_ANSWER: Duration = Duration::from_secs(1);

// Mounts.
/// How long a call on a mount that was taken out of the tree waits for a cluster that does not answer, and how long
/// such a mount stays without one: nobody can reach it any more to end it. Longer than an election after the silent
/// loss of a leader.
pub const LEAVE_PATIENCE: Duration = Duration::from_secs(10);
/// Silence of the cluster after which `stat` of a mount's root and `statfs` show what was seen last. Longer than
/// an election after the silent loss of a leader.
pub const ROOT_STAT_PATIENCE: Duration = Duration::from_secs(7);
/// How often a mount process looks whether its mount still is where it was.
pub const MOUNT_WATCH_INTERVAL: Duration = Duration::from_millis(500);
/// How long operations may take to end once their mount has.
pub const MOUNT_END_TIMEOUT: Duration = Duration::from_secs(3);

// Raft.
/// Time between two heartbeats of a leader.
pub const RAFT_HEARTBEAT: Duration = Duration::from_millis(300);
/// How long a leader may answer reads after a quorum acknowledged it, counted from sending.
pub const RAFT_READ_LEASE: Duration = Duration::from_millis(500);
/// How long a survivor waits after the leader's last append before it asks for votes.
pub const RAFT_ELECT_AFTER: Duration = Duration::from_millis(650);
/// Commands in one Raft entry at most.
pub const RAFT_BATCH_COMMANDS_MAX: usize = 256;
/// Bytes of commands in one Raft entry at most.
pub const RAFT_BATCH_BYTES_MAX: usize = 256 << 10;
/// Bytes of one operation on metadata at most: the longest value of an extended attribute and what belongs to it.
pub const OPERATION_BYTES_MAX: usize = 128 << 10;
/// Entries that stay in the Raft log after a checkpoint, for followers that lag.
pub const RAFT_LOG_KEEP_ENTRIES: u64 = 200_000;
/// Changed records in memory before the master writes a checkpoint.
pub const CHECKPOINT_RECORDS_MAX: usize = 400_000;
/// Bytes of changed records in memory before the master writes a checkpoint.
pub const CHECKPOINT_BYTES_MAX: usize = 64 << 20;

// Replica groups.
/// Time between two beacons of a primary to its secondaries.
pub const BEACON_INTERVAL: Duration = Duration::from_millis(500);
/// A primary serves this long after sending the oldest of the last acknowledged beacons.
pub const PRIMARY_LEASE: Duration = Duration::from_secs(2);
/// A secondary reports its primary after this much silence.
pub const PRIMARY_GRACE: Duration = Duration::from_secs(3);
/// A secondary answers reads this long after sending the last beacon answer that came back to it.
pub const READ_LEASE: Duration = Duration::from_secs(1);
/// How long a datanode waits for the members of a group that restarted as a whole.
pub const GROUP_RESTART_WAIT: Duration = Duration::from_secs(3);
/// Operations of a group that may be under way at once.
pub const GROUP_INFLIGHT_MAX: usize = 256;
/// Bytes of a group that may be under way at once; a writer waits beyond it.
pub const GROUP_INFLIGHT_BYTES_MAX: usize = 32 << 20;

// Repair.
/// Silence of a datanode after which its replicas are made elsewhere, unless the policy says otherwise: longer than a
/// restart of the machine.
pub const REPAIR_AFTER: Duration = Duration::from_secs(300);
/// Bytes of catch-up that a datanode sends in a second while clients are at work, unless the policy says otherwise.
pub const REPAIR_RATE_BYTES: u64 = 32 << 20;
/// How many times that when no client is.
pub const REPAIR_IDLE_FACTOR: u64 = 8;
/// Replicas on their way to one datanode at once.
pub const REPAIRS_PER_NODE_MAX: usize = 2;
/// A datanode with less than this part of its space free gets no further replicas.
pub const REPAIR_FREE_PART_MIN: u64 = 10;

// Deleted chunks.
/// How long datanodes remember at least which chunks were deleted while chunks are being deleted.
/// Afterwards a client's first write to a chunk that it has long known needs a second attempt.
pub const ERA_MIN: Duration = Duration::from_secs(600);
/// Deleted chunks after which a new era begins sooner: about 50 MB of a datanode's memory.
pub const ERA_DELETED_MAX: usize = 200_000;

// Logs and stores.
/// How long a disk may take for one call before its store counts as failed. Longer than a busy disk's
/// slowest sync, and not much longer than clients wait for one answer.
pub const DISK_STALL_MAX: Duration = Duration::from_secs(10);
/// How much of its store a datanode reads in a second to find flipped bits: 10 TB in a week.
pub const SCRUB_RATE_BYTES: u64 = 16 << 20;
/// From the end of one such round to the beginning of the next.
pub const SCRUB_INTERVAL: Duration = Duration::from_secs(7 * 24 * 3600);
/// Bytes of a chunk that a scrub compares at once.
pub const SCRUB_PIECE_BYTES: usize = 256 << 10;
/// Damaged pieces of a store that are remembered until they are repaired. The scrub waits when there are more.
pub const DAMAGED_PIECES_MAX: usize = 1000;
/// Size of one WAL segment.
pub const WAL_SEGMENT_BYTES: u64 = 64 << 20;
/// Longest WAL record.
pub const WAL_RECORD_BYTES_MAX: usize = 4 << 20;
/// Recycled WAL segments kept ready; more are removed.
pub const WAL_SEGMENTS_KEPT_SPARE: usize = 2;
/// A WAL batch is cut at this size: one write of it takes about as long as ten small ones.
pub const WAL_BATCH_BYTES_MAX: usize = 1 << 20;
/// Bytes that a WAL buffers before appends wait for the disk.
pub const WAL_PENDING_BYTES_MAX: usize = 16 << 20;
/// Buffered records that nobody waits for are written when there are this many bytes of them.
pub const WAL_EAGER_BYTES: usize = 256 << 10;
/// How far ahead of its end a WAL fills segments with zeros: an overwrite of filled blocks needs no
/// update of the filesystem's metadata, so that a sync costs less than half. The whole segment at
/// once would make the first start slow where many logs share a disk.
pub const WAL_FILL_AHEAD_BYTES: u64 = 8 << 20;
/// Zeros written at once, so that they do not hold up a sync for long.
pub const WAL_FILL_PIECE_BYTES: usize = 1 << 20;
/// Data below this size travels inside a WAL record and is applied later.
pub const WAL_INLINE_BYTES_MAX: usize = 64 << 10;

const _: () = assert!(CHUNK_SIZE_BYTES.is_multiple_of(BLOCK_SIZE as u64));
// The last command of a batch may begin just below the batch's limit.
const _: () = assert!(RAFT_BATCH_BYTES_MAX + OPERATION_BYTES_MAX * 2 < FRAME_HEADER_BYTES_MAX);
const _: () = assert!(XATTR_VALUE_BYTES_MAX * 2 <= OPERATION_BYTES_MAX);
// An inode id takes up to ten bytes on the wire.
const _: () = assert!(OPENS_PER_REPORT_MAX * 2 * 10 < FRAME_HEADER_BYTES_MAX);
const _: () = assert!(POOLED_BYTES_MIN.is_power_of_two() && POOLED_BYTES_MAX.is_power_of_two());
const _: () = assert!(FRAME_PAYLOAD_BYTES_MAX <= POOLED_BYTES_MAX);
const _: () = assert!(IO_BYTES_MAX.is_multiple_of(BLOCK_SIZE));
const _: () = assert!(LEAVE_PATIENCE.as_millis() > REQUEST_TIMEOUT.as_millis());
const _: () = assert!(LEAVE_PATIENCE.as_millis() > 2 * SESSION_KEEPALIVE.as_millis());
const _: () = assert!(FILE_SIZE_BYTES_MAX / CHUNK_SIZE_BYTES <= u32::MAX as u64);
const _: () = assert!(WAL_INLINE_BYTES_MAX < WAL_RECORD_BYTES_MAX);
const _: () = assert!(FRAME_PAYLOAD_BYTES_MAX < WAL_RECORD_BYTES_MAX);
const _: () = assert!(WAL_RECORD_BYTES_MAX + 2 * BLOCK_SIZE < WAL_FILL_AHEAD_BYTES as usize);
const _: () = assert!(WAL_RECORD_BYTES_MAX < WAL_PENDING_BYTES_MAX);
const _: () = assert!(WAL_EAGER_BYTES < WAL_PENDING_BYTES_MAX);
const _: () = assert!(WAL_SEGMENT_BYTES.is_multiple_of(BLOCK_SIZE as u64));
const _: () = assert!(WAL_FILL_PIECE_BYTES.is_multiple_of(BLOCK_SIZE));
const _: () = assert!(RAFT_READ_LEASE.as_millis() < RAFT_ELECT_AFTER.as_millis());
const _: () = assert!(RAFT_HEARTBEAT.as_millis() < RAFT_READ_LEASE.as_millis());
const _: () = assert!(PRIMARY_LEASE.as_millis() < PRIMARY_GRACE.as_millis());
const _: () = assert!(BEACON_INTERVAL.as_millis() * 2 <= READ_LEASE.as_millis());
