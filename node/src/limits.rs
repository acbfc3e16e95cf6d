//! One table of every bound on what a peer, a user or a file can make this node do.
//!
//! A bound that is reached gives a refusal or an error, never a panic and never an unbounded queue.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use crate::budget::Rate;

/// Longest control frame of `spare/1`. Bulk bytes travel outside frames, with their length announced in one.
pub const FRAME_MAX_BYTES: usize = 256 * 1024;
/// Longest shard a provider takes: k = 1 with its single row per record, plus room for rounding.
pub const SHARD_MAX_BYTES: u64 = 40 << 20;
/// Most shards named in one delete.
pub const DELETE_MAX_ROOTS: usize = 512;
/// Most shards that one head adds, and that it removes.
pub const HEAD_CHANGES_MAX: usize = 2048;
/// Most shards in a page of a deal's set.
pub const SET_PAGE_MAX: usize = 2048;
/// Most deals that one client may have with a provider at once.
pub const DEALS_PER_CLIENT_MAX: usize = 16;
/// How long a stored shard that no head covers is kept, in seconds.
pub const FRESH_LIFE_S: u64 = 24 * 3600;
/// Most asks in one answer.
pub const ASKS_PER_ANSWER_MAX: usize = 128;
/// Bytes of asks after which an answer takes no more; one ask more still fits a frame.
pub const ASKS_PER_ANSWER_BYTES: usize = FRAME_MAX_BYTES / 2;
/// Most providers whose asks are kept.
pub const ASKS_MAX: usize = 10_000;
/// Most providers whose asks are kept that say they are in one network (/24, IPv6: /48).
pub const ASKS_PER_SUBNET_MAX: usize = 64;
/// Longest file of evidence.
pub const EVIDENCE_MAX_BYTES: usize = 64 << 10;
/// Longest read of which what was sent is kept, so that it becomes evidence if it is wrong and signed.
pub const EVIDENCE_READ_MAX_BYTES: u64 = 16 << 10;
/// How often a provider shows openings to auditors, over all of them: 20 reads of 16 KiB each time.
pub const OPENINGS: Rate = Rate { per_s: 1, burst: 60 };
/// Longest reason in a report of a failed audit.
pub const NOTICE_WHY_MAX_BYTES: usize = 256;
/// Longest libp2p gossip message.
pub const GOSSIP_MAX_BYTES: usize = 8 * 1024;
/// Most gossip messages in one packet of a peer's.
pub const GOSSIP_PER_PACKET_MAX: usize = 64;
/// Gossip messages that one peer may pass on. Asks of 10,000 providers, one in 15 s each, are 670 a second over all neighbours.
pub const GOSSIP_PER_PEER: Rate = Rate { per_s: 500, burst: 5000 };
/// Gossip messages that are looked at, from all peers together: about a quarter of a processor core.
pub const GOSSIP_IN_ALL: Rate = Rate { per_s: 1500, burst: 10_000 };
/// Gossip messages queued for one peer that is slow to take them.
pub const GOSSIP_QUEUE_MAX: usize = 128;
/// Invalid gossip messages within about a minute after which a peer is not listened to, and disconnected.
pub const GOSSIP_INVALID_MAX: u32 = 5;
/// How long a peer's misbehaviour in gossip is remembered after it is gone.
pub const GOSSIP_REMEMBERED: Duration = Duration::from_secs(600);
/// Most libp2p connections with one network (/24, IPv6: /48) that it began, handshakes under way included.
pub const LIBP2P_CONNECTIONS_PER_SUBNET_MAX: usize = 64;
/// libp2p connections that one network (/24, IPv6: /48) may begin.
pub const LIBP2P_HANDSHAKES_PER_SUBNET: Rate = Rate { per_s: 8, burst: 128 };
/// How many of those it costs a network that a peer of it is disconnected for what it gossips.
pub const LIBP2P_MISBEHAVIOUR_COST: u64 = 64;
/// Most libp2p handshakes under way, from all peers.
pub const LIBP2P_HANDSHAKES_MAX: u32 = 512;
/// Most libp2p handshakes under way, from one network (/24, IPv6: /48).
pub const LIBP2P_HANDSHAKES_PER_SUBNET_MAX: usize = 16;
/// Most direct (quinn) connections at once.
pub const CONNECTIONS_MAX: usize = 512;
/// Most direct connections from one address at once.
pub const CONNECTIONS_PER_IP_MAX: usize = 64;
/// Most direct connections from one network (/24, IPv6: /48) at once.
pub const CONNECTIONS_PER_SUBNET_MAX: usize = 256;
/// Most streams a peer may have open on a connection.
pub const STREAMS_PER_CONNECTION_MAX: u32 = 32;
/// Most `spare/1` sessions served at once, over all peers and transports.
pub const SESSIONS_MAX: usize = 1024;
/// Most sessions served at once for one peer.
pub const SESSIONS_PER_PEER_MAX: usize = 64;
/// Most sessions served at once for peers in one network (/24, IPv6: /48): keys are free, networks are not.
pub const SESSIONS_PER_SUBNET_MAX: usize = 256;
/// Most reads served at once, over all peers. Each has at most [`READ_BUFFERS_MAX`] buffers of `direct_io::BUFFER_BYTES` in memory: see
/// [`memory_max_bytes`].
pub const READS_MAX: usize = 128;
/// Most reads served at once for one peer.
pub const READS_PER_PEER_MAX: usize = 48;
/// Most reads served at once for peers in one network (/24, IPv6: /48).
pub const READS_PER_SUBNET_MAX: usize = 64;
/// Buffers of a read: one that is read, one that is sent, and one of which the peer has not acknowledged the end.
pub const READ_BUFFERS_MAX: usize = 3;
/// How long a read waits for its place.
pub const READ_WAIT: Duration = Duration::from_secs(5);
/// How long somebody has to have made no progress to give way, when all connections, sessions or reads are taken, to somebody from a network that has
/// fewer, unless it has less than half as many. It is longer than a moment's congestion, and shorter than anybody waits.
pub const GIVE_WAY_AFTER: Duration = Duration::from_secs(1);
/// Most direct connections whose handshake is not finished.
pub const HANDSHAKES_MAX: usize = 256;
/// Most direct connections from one network (/24, IPv6: /48) whose handshake is not finished.
pub const HANDSHAKES_PER_SUBNET_MAX: usize = 32;
/// Direct connections that are begun before addresses have to be shown to be their senders': the first packet of a handshake that nobody finishes costs
/// a signature otherwise.
pub const HANDSHAKES_BEFORE_RETRY: Rate = Rate { per_s: 32, burst: 64 };
/// Connections that one network (/24, IPv6: /48) may begin. Each costs about a millisecond of this node's time.
pub const HANDSHAKES_PER_SUBNET: Rate = Rate { per_s: 32, burst: 512 };
/// Most bytes kept of what arrives for one connection before it is accepted: the first flight of a handshake.
pub const INCOMING_BUFFER_BYTES: u64 = 16 << 10;
/// Bytes that a peer may send on an accepted connection before they are read, unless something long of it is being stored.
pub const ACCEPTED_WINDOW_BYTES: u32 = 512 << 10;
/// Bytes that a peer may send ahead on a connection over which something long goes.
pub const BULK_WINDOW_BYTES: u32 = 8 << 20;
/// Requests that no deal pays for which a peer may make, in units of about a lookup.
pub const UNPAID_PER_PEER: Rate = Rate { per_s: 200, burst: 2000 };
/// The same for a network (/24, IPv6: /48) together.
pub const UNPAID_PER_SUBNET: Rate = Rate { per_s: 800, burst: 8000 };
/// Bytes, either way, of such requests and their answers for a peer. A new node replays the ledger, and a recovered one reads its index.
pub const UNPAID_BYTES_PER_PEER: Rate = Rate { per_s: 8 << 20, burst: 64 << 20 };
/// The same for a network (/24, IPv6: /48) together.
pub const UNPAID_BYTES_PER_SUBNET: Rate = Rate { per_s: 32 << 20, burst: 256 << 20 };
/// Malformed frames after which a peer is not listened to for a while.
pub const MALFORMED_PER_PEER: Rate = Rate { per_s: 1, burst: 16 };
/// The same for a network (/24, IPv6: /48) together.
pub const MALFORMED_PER_SUBNET: Rate = Rate { per_s: 1, burst: 64 };
/// Peers and networks whose budgets are remembered, of each kind. All further ones share a budget.
pub const BUDGET_KEYS_MAX: usize = 4096;
/// Longest time for which somebody over its budget is refused, whatever it took.
pub const DEBT_MAX: Duration = Duration::from_secs(60);
/// Longest time that a request waits because its peer is over its budget; beyond that it is refused.
pub const THROTTLE_MAX: Duration = Duration::from_secs(2);
/// Accepted connections from one address from which on it must show that the address is its own.
pub const CONNECTIONS_BEFORE_RETRY: usize = 8;
/// Most lists of blocks, each of which is in memory whole, and snapshots on their way at once, over all peers.
pub const BLOCK_TRANSFERS_MAX: usize = 16;
/// Most lists of blocks and snapshots on their way at once to one network (/24, IPv6: /48).
pub const BLOCK_TRANSFERS_PER_SUBNET_MAX: usize = 2;
/// Most transactions that the market takes from one network in a minute.
pub const SUBMISSIONS_PER_SUBNET_MAX: usize = 120;
/// Most index entries on their way at once, in or out, over all peers; each is in memory whole.
pub const INDEX_TRANSFERS_MAX: usize = 8;
/// Most addresses that are taken from a peer's word about itself.
pub const IDENTIFY_ADDRESSES_MAX: usize = 16;
/// Most libp2p connections, in each direction.
pub const LIBP2P_CONNECTIONS_MAX: u32 = 256;
/// Of incoming ones, how many are kept free for networks that have few.
pub const LIBP2P_CONNECTIONS_FREE: usize = 32;
/// Most libp2p connections with one peer.
pub const LIBP2P_CONNECTIONS_PER_PEER_MAX: u32 = 4;
/// Resident memory above which no further libp2p connection is accepted.
pub const LIBP2P_MEMORY_MAX_BYTES: usize = 1 << 30;
/// Most addresses of this node that peers report and that are looked into, within [`CANDIDATES_WINDOW`].
pub const CANDIDATES_MAX: usize = 8;
/// Most such addresses that are taken from one network (/24, IPv6: /48).
pub const CANDIDATES_PER_SUBNET_MAX: usize = 2;
/// The time in which reported addresses are counted.
pub const CANDIDATES_WINDOW: Duration = Duration::from_secs(600);
/// Most peers' findings about one of this node's ports that are kept, one for each network.
pub const FINDINGS_MAX: usize = 8;
/// How long a finding about a port counts, in seconds.
pub const FINDING_LIFE_S: u64 = 3600;
/// Most dials at once that AutoNAT makes because peers ask for them.
pub const PROBE_DIALS_AT_ONCE_MAX: usize = 16;
/// Most dials back to askers' own ports at once.
pub const DIAL_BACKS_AT_ONCE_MAX: usize = 8;
/// Most dials back to one network in a minute, and so most packets that somebody can have sent to a neighbour's address.
pub const DIAL_BACKS_PER_SUBNET_MAX: usize = 6;
/// Most dials back in a minute.
pub const DIAL_BACKS_MAX: usize = 240;
/// Lowest port that is dialled back: below it are services of others.
pub const DIAL_BACK_PORT_MIN: u16 = 1024;
/// Peers to which connections are being made at once.
pub const CONNECTS_MAX: usize = 64;
/// Most who wait for one connection.
pub const CONNECT_WAITERS_MAX: usize = 64;
/// Time for a hole to be punched, once a circuit through a relay stands. libp2p tries three times, each for up to 5 s.
pub const PUNCH_TIMEOUT: Duration = Duration::from_secs(12);
/// Most addresses of a peer that are dialled at once to punch a hole.
pub const PUNCH_ADDRESSES_MAX: usize = 8;
/// Relays at which a node that cannot be reached reserves a slot.
pub const RELAYS_WANTED: usize = 2;
/// As a relay: most peers with a reservation.
pub const RELAY_RESERVATIONS_MAX: usize = 128;
/// As a relay: how long a reservation holds.
pub const RELAY_RESERVATION_LIFE: Duration = Duration::from_secs(1800);
/// As a relay: most circuits at once.
pub const RELAY_CIRCUITS_MAX: usize = 64;
/// As a relay: most circuits of one peer at once: a client may want a dozen providers behind NATs in one go.
pub const RELAY_PER_PEER_MAX: usize = 16;
/// As a relay: how long a circuit may last. It is there for two peers to agree on when to dial each other.
pub const RELAY_CIRCUIT_LIFE: Duration = Duration::from_secs(30);
/// As a relay: most bytes that a circuit carries each way: two handshakes and two lists of addresses.
pub const RELAY_CIRCUIT_MAX_BYTES: u64 = 32 << 10;
/// As a relay: circuits, and reservations, that one peer may ask for in quick succession.
pub const RELAY_PER_PEER_BURST: u32 = 60;
/// As a relay: circuits, and reservations, that one address may ask for in quick succession.
pub const RELAY_PER_IP_BURST: u32 = 240;
/// As a relay: the time after which one more of them is granted.
pub const RELAY_RATE_INTERVAL: Duration = Duration::from_secs(10);
/// Most index log entries that an account may keep at one provider, and their bytes together.
pub const INDEX_ENTRIES_MAX: u64 = 100_000;
/// Most bytes of index log that an account may keep at one provider.
pub const INDEX_MAX_BYTES: u64 = 256 << 20;
/// Most bytes of index logs that a provider keeps for all accounts together, in percent of its offer.
pub const INDEX_ROOM_PERCENT: u64 = 5;
/// Room for index logs that even the smallest offer comes with.
pub const INDEX_ROOM_MIN_BYTES: u64 = 64 << 20;
/// Longest blob name, in bytes.
pub const NAME_MAX_BYTES: usize = 1024;
/// Most uploads through the HTTP API at once.
pub const PUTS_MAX: usize = 4;
/// Most downloads through the HTTP API at once.
pub const GETS_MAX: usize = 16;

/// Most jobs of this client that are kept, over or not.
pub const ORDERS_KEPT_MAX: usize = 4096;
/// Most jobs of this client that are under way at once.
pub const ORDERS_AT_ONCE_MAX: usize = 64;
/// Bytes of what a running job printed that are kept, of each of both kinds: its end. The whole is there once it is over.
pub const ORDER_LOG_KEPT_BYTES: usize = 1 << 20;
/// Most jobs of one client that wait at a provider for their turn.
pub const JOBS_WAITING_PER_CLIENT_MAX: usize = 128;
/// Most jobs that wait at a provider, of all clients.
pub const JOBS_WAITING_MAX: usize = 1024;
/// Most jobs that are over and that a provider still knows.
pub const JOBS_KEPT_MAX: usize = 1000;
/// How long a provider knows a job that is over, in seconds.
pub const JOBS_KEPT_S: u64 = 24 * 3600;
/// How long what came out of a job is not dropped for want of room, in seconds.
pub const JOB_RESULT_PINNED_S: u64 = 600;
/// Most bytes of standard output of a job, and of standard error.
pub const JOB_LOG_MAX_BYTES: u64 = 16 << 20;
/// Most bytes of what was printed in one answer, of each of both kinds.
pub const JOB_LOG_PIECE_BYTES: usize = 32 << 10;
/// Most bytes of a job's inputs together.
pub const JOB_INPUT_MAX_BYTES: u64 = 1 << 30;
/// Most materials that are asked about at once: the most that one job needs.
pub const JOB_MATERIALS_ASKED_MAX: usize = spare_market::job::INPUTS_MAX + 2;
/// Most files of jobs that are sent at once, over all peers.
pub const JOB_BYTES_SENT_MAX: usize = 32;
/// The longest that an order may let a provider wait before it begins, in seconds.
pub const JOB_BEGIN_WITHIN_MAX_S: u64 = 24 * 3600;
/// How long an asker for a job's news is kept waiting.
pub const JOB_WATCH_WAIT: Duration = Duration::from_secs(5);
/// How long a job stands still for want of payment before it is given up.
pub const JOB_PAY_WAIT: Duration = Duration::from_secs(120);

/// Most transactions waiting for a block at the market.
pub const SUBMISSIONS_MAX: usize = 4096;
/// Bytes of blocks after which an answer takes no more.
pub const BLOCKS_PER_ANSWER_BYTES: usize = 1 << 20;
/// Most bytes of an answer with blocks: one block more than the budget.
pub const BLOCKS_MAX_BYTES: usize = 8 << 20;
/// Most bytes of a snapshot of the ledger: all of it is in memory at whoever takes it.
pub const SNAPSHOT_MAX_BYTES: usize = 1 << 30;
/// Most peers beside the market that are asked for blocks in one round.
pub const BLOCK_SOURCES_MAX: usize = 3;
/// How long an asker for blocks is kept waiting for the next one.
pub const BLOCKS_WAIT: Duration = Duration::from_secs(5);
/// Time for a transaction to get into a block, and for that block to arrive.
pub const SUBMIT_TIMEOUT: Duration = Duration::from_secs(30);

/// Time for a peer to finish a handshake or a hello.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for a connection to a provider to stand.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest silence in the middle of a request: after it the peer counts as stalled.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest time in which a provider takes no cell of a shard. The others of a segment wait for it, and hang up after [`STALL_TIMEOUT`], so it is
/// given up well before.
pub const UPLOAD_STALL_TIMEOUT: Duration = Duration::from_secs(15);
/// Time for a provider to make a shard durable and sign, once its last bytes are handed to the transport: up to a mebibyte of them may
/// still have to travel.
pub const RECEIPT_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes per second that a bulk transfer has to make on average, beside [`STALL_TIMEOUT`] for a start.
pub const BULK_RATE_MIN: u64 = 16 << 10;
/// Piece of a bulk transfer that has to arrive within [`STALL_TIMEOUT`].
pub const BULK_PIECE_BYTES: usize = 64 << 10;
/// Time for one peer to tell the asks it knows.
pub const LEARN_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest idle time of a session between requests, on the serving side.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(120);
/// Silence of a fetch after which a further provider is asked as well.
pub const HEDGE_AFTER: Duration = Duration::from_millis(1500);
/// Time for which a provider that could not be reached is asked last.
pub const COOL_DOWN: Duration = Duration::from_secs(20);
/// Copies of an index log that are fetched at once when recovering.
pub const RECOVER_COPIES_AT_ONCE: usize = 4;
/// Time for a deal that the asker sees on the ledger to appear on the answerer's.
pub const DEAL_WAIT: Duration = Duration::from_secs(5);
/// Segments after which a put has its shards covered by heads, well before providers lose patience.
pub const SEGMENTS_PER_HEAD: usize = 64;
/// Rounds of replacing failed providers while a segment is placed.
pub const PLACE_ROUNDS_MAX: usize = 4;
/// Segments in flight during a put: each holds at most about 40 MiB of plaintext.
pub const SEGMENTS_IN_FLIGHT: usize = 2;
/// Slices in flight during a get: each holds at most about 10 MiB of shards and as much plaintext.
pub const SLICES_IN_FLIGHT: usize = 3;
/// Cells queued for one shard's upload before the coder waits.
pub const CELLS_QUEUED_MAX: usize = 2;

/// Space that is always left free on a provider's disk, for metadata.
pub const DISK_MARGIN_BYTES: u64 = 16 << 20;

/// Memory of the program at rest: code, caches, RocksDB's buffers, a ledger and asks of a few thousand entries.
const AT_REST_BYTES: usize = 96 << 20;
/// What a session takes beside a frame: its task, its stream, its buffers.
const SESSION_BYTES: usize = 32 << 10;
/// What a connection takes beside its window: its state, its keys, what is to be sent again.
const CONNECTION_BYTES: usize = 96 << 10;

/// Most memory that peers can make this node use over direct connections, all bounds reached at once:
///
/// | what | how much |
/// |---|---|
/// | at rest | 96 MiB |
/// | reads | [`READS_MAX`] x [`READ_BUFFERS_MAX`] buffers of 512 KiB, twice over, since threads pass them on and allocators take them back late: 384 MiB |
/// | sessions | [`SESSIONS_MAX`] x ([`FRAME_MAX_BYTES`] + 32 KiB): 288 MiB |
/// | connections | [`CONNECTIONS_MAX`] x ([`ACCEPTED_WINDOW_BYTES`] + 96 KiB): 304 MiB |
/// | handshakes | [`HANDSHAKES_MAX`] x ([`INCOMING_BUFFER_BYTES`] + 96 KiB): 28 MiB |
/// | index entries on their way | [`INDEX_TRANSFERS_MAX`] x 2 x 8 MiB: 128 MiB |
/// | lists of blocks on their way | [`BLOCK_TRANSFERS_MAX`] x 2 x 2 x [`BLOCKS_PER_ANSWER_BYTES`]: 64 MiB |
///
/// Beyond that are shards being stored, which a funded deal pays for ([`BULK_WINDOW_BYTES`] a connection and a buffer a shard), jobs, whose memory the
/// setting `compute.memory` bounds, and libp2p, whose
/// connections end at [`LIBP2P_MEMORY_MAX_BYTES`] of the process's memory.
pub fn memory_max_bytes() -> usize {
    let reads = 2 * READS_MAX * READ_BUFFERS_MAX * crate::direct_io::BUFFER_BYTES;
    let sessions = SESSIONS_MAX * (FRAME_MAX_BYTES + SESSION_BYTES);
    let connections = CONNECTIONS_MAX * (ACCEPTED_WINDOW_BYTES as usize + CONNECTION_BYTES);
    let handshakes = HANDSHAKES_MAX * (INCOMING_BUFFER_BYTES as usize + CONNECTION_BYTES);
    let index = INDEX_TRANSFERS_MAX * 2 * (8 << 20);
    let blocks = BLOCK_TRANSFERS_MAX * 2 * 2 * BLOCKS_PER_ANSWER_BYTES;
    AT_REST_BYTES + reads + sessions + connections + handshakes + index + blocks
}

/// The time that a transfer of `bytes` bytes may take in all.
pub fn bulk_timeout(bytes: u64) -> Duration {
    STALL_TIMEOUT + Duration::from_secs(bytes / BULK_RATE_MIN)
}

/// Takes one off a count, and forgets a count of 0.
pub fn count_down<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}
