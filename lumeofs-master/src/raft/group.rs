//! One member of a Raft group with everything that belongs to it.

use super::election;
use super::handover::Handover;
use super::lease::Lease;
use super::log_store::LogStore;
use super::network::{Network, RaftServer};
use super::presence::Presence;
use super::reads::{Rounds, not_leader};
use super::state_machine::{StateMachine, blocking};
use super::store::{Limits, Store};
use super::types::{LogId, Machine, Raft, Term};
use crate::masters::Masters;
use anyhow::{Context as _, Result};
use lumeofs_base::clock::{Clock as _, SystemClock};
use lumeofs_base::limits::{RAFT_HEARTBEAT, RAFT_LOG_KEEP_ENTRIES};
use lumeofs_base::{Code, FsError, FsResult, RaftGroupId};
use lumeofs_proto::auth::Identity;
use lumeofs_wal::WalConfig;
use openraft::error::{Fatal, InitializeError, RaftError};
use openraft::{BasicNode, ServerState, SnapshotPolicy};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// Bytes of entries that stay in the log after a checkpoint, if that is reached before
/// [`RAFT_LOG_KEEP_ENTRIES`].
const KEEP_BYTES: u64 = 64 << 20;
/// Longest time between two checkpoints while there are changes.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(60);
/// Checkpoints of masters keep this distance, so that they do not all write at once.
const CHECKPOINT_STAGGER: Duration = Duration::from_secs(7);
/// Election time-outs in ms by rank. Disjoint, since openraft draws once per process (rule R1).
const ELECTION_MS: [(u64, u64); 5] = [
    (1500, 1700),
    (2000, 2200),
    (2600, 2900),
    (3300, 3600),
    (4000, 4300),
];
/// Pause before a checkpoint that found no room is tried again.
const FULL_PAUSE: Duration = Duration::from_secs(2);
/// openraft's figures change several times with each entry; what watches them looks no more often than this.
const LOOK: Duration = Duration::from_millis(100);
/// A refresh of the lease is asked for when this much of it has passed.
const LEASE_REFRESH_AFTER: Duration = Duration::from_millis(200);
/// A leader that no quorum has answered for so long sends its clients away.
pub(super) const QUORUM_SILENCE_MAX: Duration = Duration::from_secs(2);

/// What a group's member must be told.
pub(crate) struct GroupConfig {
    /// The group.
    pub(crate) group: RaftGroupId,
    /// Its name, for logs and people; also of its directory.
    pub(crate) name: &'static str,
    /// This master.
    pub(crate) identity: Identity,
    /// All masters.
    pub(crate) masters: Arc<Masters>,
    /// Position of this master among them.
    pub(crate) rank: usize,
}

/// A running member.
pub(crate) struct Group {
    /// The group.
    pub(crate) id: RaftGroupId,
    /// Its name.
    pub(crate) name: &'static str,
    me: u64,
    raft: Raft,
    store: Arc<Store>,
    log: LogStore,
    lease: Arc<Lease>,
    handover: Arc<Handover>,
    rounds: Rounds,
    server: Arc<RaftServer>,
    tasks: Mutex<JoinSet<()>>,
}

/// A leadership of this master.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Leadership {
    /// Names it.
    pub(crate) term: Term,
}

/// What a member tells people.
pub(crate) struct Report {
    pub(crate) role: &'static str,
    pub(crate) term: u64,
    pub(crate) leader: Option<u64>,
    pub(crate) last_log: u64,
    pub(crate) committed: u64,
    pub(crate) applied: u64,
    pub(crate) snapshot: u64,
    pub(crate) purged: u64,
    /// Matched index of each other member, on the leader.
    pub(crate) followers: Vec<(u64, u64)>,
}

impl Group {
    /// Opens the store of a group.
    pub(crate) fn open_store(dir: &Path, name: &str) -> Result<Arc<Store>> {
        let dir = dir.join(name);
        std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        Ok(Arc::new(Store::open(
            &dir.join("store.redb"),
            Limits::default(),
        )?))
    }

    /// Opens the log and starts the member.
    pub(crate) async fn start<M: Machine>(
        config: GroupConfig,
        dir: &Path,
        store: Arc<Store>,
        machine: Arc<M>,
        presence: Arc<Presence>,
    ) -> Result<Arc<Self>> {
        let log_dir = dir.join(config.name).join("log");
        std::fs::create_dir_all(&log_dir)
            .with_context(|| format!("create {}", log_dir.display()))?;
        let me = config.identity.node.get();
        let shown = log_dir.display().to_string();
        let log = blocking(move || LogStore::open(&log_dir, WalConfig::default(), me)).await;
        let log = log.with_context(|| {
            format!(
                "Raft log {shown}: it holds what this master promised, so do not empty it; keep the other \
                 masters running and restore the directory"
            )
        })?;
        check_whole(&log, &store, &shown)?;
        log.stand_behind(store.clone()).await?;
        let lease = Arc::new(Lease::default());
        let handover = Arc::new(Handover::default());
        let network = Network::new(
            config.group,
            config.identity,
            config.masters,
            lease.clone(),
            handover.clone(),
            log.clone(),
        );
        let state_machine = StateMachine::new(store.clone(), log.clone(), machine);
        let raft_config = Arc::new(raft_config(config.name, config.rank).validate()?);
        let raft = Raft::new(me, raft_config, network, log.clone(), state_machine).await?;
        let server = Arc::new(RaftServer::new(
            config.group,
            raft.clone(),
            store.clone(),
            handover.clone(),
            log.clone(),
        ));
        let mut tasks = JoinSet::new();
        tasks.spawn(election::run(
            config.group,
            raft.clone(),
            server.clone(),
            presence,
            me,
            config.rank,
        ));
        if log.has_resigned() {
            tasks.spawn(election::replace_own(raft.clone(), server.clone()));
        }
        tasks.spawn(checkpoints(raft.clone(), store.clone(), config.rank));
        tasks.spawn(purges(raft.clone(), log.clone()));
        tasks.spawn(stop_when_broken(config.name, raft.clone()));
        Ok(Arc::new(Self {
            id: config.group,
            name: config.name,
            me,
            rounds: Rounds::start(raft.clone()),
            raft,
            store,
            log,
            lease,
            handover,
            server,
            tasks: Mutex::new(tasks),
        }))
    }

    /// Makes the first membership, if the group never had one.
    pub(crate) async fn initialize(&self, masters: &BTreeMap<u64, String>) -> Result<()> {
        let members: BTreeMap<u64, BasicNode> = masters
            .iter()
            .map(|(id, address)| (*id, BasicNode::new(address)))
            .collect();
        match self.raft.initialize(members).await {
            Ok(()) => {
                tracing::info!(group = self.name, "new group initialised");
                let (raft, server) = (self.raft.clone(), self.server.clone());
                self.tasks.lock().spawn(election::found(raft, server));
            }
            Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {}
            Err(error) => return Err(error).context(format!("initialise group {}", self.name)),
        }
        Ok(())
    }

    /// Whether the group ever had a membership here.
    pub(crate) async fn is_pristine(&self) -> Result<bool> {
        Ok(!self.raft.is_initialized().await?)
    }

    /// This master's id.
    pub(crate) fn me(&self) -> u64 {
        self.me
    }

    pub(super) fn raft(&self) -> &Raft {
        &self.raft
    }

    pub(super) fn log(&self) -> &LogStore {
        &self.log
    }

    pub(super) fn lease(&self) -> &Lease {
        &self.lease
    }

    pub(super) fn handover(&self) -> &Handover {
        &self.handover
    }

    /// Applied state.
    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// Says when everything of this member is gone.
    #[cfg(test)]
    pub(crate) fn watch_store(&self) -> std::sync::Weak<Store> {
        Arc::downgrade(&self.store)
    }

    /// The receiving end for other members.
    pub(crate) fn server(&self) -> &RaftServer {
        &self.server
    }

    /// The leader that this member knows.
    pub(crate) fn leader(&self) -> Option<u64> {
        self.raft.server_metrics().borrow().current_leader
    }

    /// This member's leadership, if it believes to lead. Deposed leaders may believe it for a while.
    pub(crate) fn leadership(&self) -> Option<Leadership> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow();
        let id = metrics.vote.leader_id;
        (metrics.state == ServerState::Leader && metrics.vote.committed && id.node_id == self.me)
            .then(|| Leadership { term: id.into() })
    }

    /// Fails unless this member believes to lead and a quorum answered it lately.
    pub(crate) fn check_leads(&self) -> FsResult<Leadership> {
        let Some(leadership) = self.leadership() else {
            return Err(not_leader(
                self.leader().filter(|leader| *leader != self.me),
            ));
        };
        match self.silence(leadership.term) {
            Some(silence) if silence > QUORUM_SILENCE_MAX => Err(not_leader(None)),
            _ => Ok(leadership),
        }
    }

    /// Whether this member leads with a quorum, or knows who does.
    pub(crate) fn can_serve(&self) -> bool {
        match self.check_leads() {
            Ok(_) => true,
            Err(error) => matches!(error.code, Code::NotLeader(Some(_))),
        }
    }

    /// Whether a quorum was heard of within a time. A leader that hears nobody does not hear its clients either.
    pub(crate) fn has_heard(&self, leadership: Leadership, within: Duration) -> bool {
        let silence = self.silence(leadership.term);
        silence.is_some_and(|silence| silence <= within)
    }

    fn silence(&self, term: Term) -> Option<Duration> {
        let membership = self
            .raft
            .server_metrics()
            .borrow()
            .membership_config
            .clone();
        self.lease
            .silence(term, &membership, SystemClock.monotonic())
    }

    /// How long ago the append was sent that a member acknowledged last in this leadership.
    pub(super) fn silence_of(&self, term: Term, node: u64) -> Option<Duration> {
        self.lease.silence_of(term, node, SystemClock.monotonic())
    }

    /// Returns when applied state is current: reads after it see everything that was acknowledged
    /// before the call. Fails with `NotLeader` if this member cannot know.
    pub(crate) async fn linearizable(&self) -> FsResult<Leadership> {
        let leadership = self.check_leads()?;
        if self.holds_lease(leadership) {
            return Ok(leadership);
        }
        self.rounds.join().await?;
        Ok(leadership)
    }

    /// The last entry that this member knows to be committed.
    pub(crate) fn committed(&self) -> u64 {
        let committed = self.log.committed().map_or(0, |id| id.index);
        committed.max(self.store.applied().map_or(0, |id| id.index))
    }

    /// Waits until an entry is applied.
    ///
    /// # Errors
    /// `Again` if that takes longer than `limit`.
    pub(crate) async fn wait_applied(&self, index: u64, limit: Duration) -> FsResult<()> {
        let until = tokio::time::Instant::now() + limit;
        while self.store.applied().map_or(0, |id| id.index) < index {
            if tokio::time::Instant::now() >= until {
                let text = "what is committed is not applied yet";
                return Err(FsError::new(Code::Again, text));
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    /// Whether a read may go on at once: a quorum has confirmed us lately, and everything that earlier
    /// leaders committed is applied, which the first applied entry of our own shows.
    fn holds_lease(&self, leadership: Leadership) -> bool {
        let applied: Option<LogId> = self.store.applied();
        if applied.map(|id| Term::from(id.leader_id)) != Some(leadership.term) {
            return false;
        }
        let membership = self
            .raft
            .server_metrics()
            .borrow()
            .membership_config
            .clone();
        let now = SystemClock.monotonic();
        match self.lease.silence(leadership.term, &membership, now) {
            Some(silence) if silence > LEASE_REFRESH_AFTER => {
                self.refresh_lease();
                self.lease.holds(leadership.term, &membership, now)
            }
            Some(_) => true,
            None => false,
        }
    }

    /// Asks for a heartbeat ahead of its time. openraft's come every 450 ms, which would let the lease
    /// lapse now and then under load.
    fn refresh_lease(&self) {
        use futures::FutureExt as _;
        // Queueing does not wait; a failure means that the group is stopping.
        let _ = self.raft.trigger().heartbeat().now_or_never();
    }

    /// Writes a checkpoint and cuts the whole log off behind it.
    #[cfg(test)]
    pub(crate) async fn compact(&self) {
        let applied = self.store.applied().expect("something is applied").index;
        self.raft
            .trigger()
            .snapshot()
            .await
            .expect("the group runs");
        let limit = Some(Duration::from_secs(60));
        let reached = |metrics: &openraft::RaftMetrics<u64, BasicNode>| {
            metrics
                .snapshot
                .is_some_and(|snapshot| snapshot.index >= applied)
        };
        self.raft
            .wait(limit)
            .metrics(reached, "checkpoint")
            .await
            .expect("a checkpoint is written");
        self.raft
            .trigger()
            .purge_log(applied)
            .await
            .expect("the group runs");
        let purged = |metrics: &openraft::RaftMetrics<u64, BasicNode>| {
            metrics.purged.is_some_and(|id| id.index >= applied)
        };
        self.raft
            .wait(limit)
            .metrics(purged, "purge")
            .await
            .expect("the log is cut off");
    }

    /// What to tell people.
    pub(crate) fn report(&self) -> Report {
        let metrics = self.raft.metrics().borrow().clone();
        let index = |id: Option<LogId>| id.map_or(0, |id| id.index);
        Report {
            role: match metrics.state {
                ServerState::Leader => "leader",
                ServerState::Follower => "follower",
                ServerState::Candidate => "candidate",
                ServerState::Learner => "learner",
                ServerState::Shutdown => "stopped",
            },
            term: metrics.current_term,
            leader: metrics.current_leader,
            last_log: metrics.last_log_index.unwrap_or(0),
            committed: index(self.log.committed()).max(index(metrics.last_applied)),
            applied: index(metrics.last_applied),
            snapshot: index(metrics.snapshot),
            purged: index(metrics.purged),
            followers: metrics
                .replication
                .unwrap_or_default()
                .into_iter()
                .filter(|(node, _)| *node != self.me)
                .map(|(node, matched)| (node, index(matched)))
                .collect(),
        }
    }

    /// Other members that have acknowledged entries of the log to this one, which leads.
    pub(crate) fn acknowledgers(&self) -> Vec<u64> {
        let followers = self.report().followers.into_iter();
        let acknowledged = followers.filter_map(|(id, matched)| (matched > 0).then_some(id));
        acknowledged.collect()
    }

    /// Stops the member and writes a last checkpoint.
    pub(crate) async fn stop(&self) -> FsResult<()> {
        self.tasks.lock().abort_all();
        self.log.close();
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(group = self.name, %error, "Raft did not stop cleanly");
        }
        let store = self.store.clone();
        let written = blocking(move || store.checkpoint_if_room()).await;
        written.map(drop)
    }
}

/// A log and a store that miss something between them must not be used.
fn check_whole(log: &LogStore, store: &Store, shown: &str) -> Result<()> {
    let applied = store.applied().map(|id| id.index);
    let text = match (log.is_blank(), log.purged(), applied) {
        (true, _, Some(applied)) => format!(
            "Raft log {shown} is empty, but entry {applied} was applied: this master must not vote \
             without what it has promised; keep the other masters running and restore the directory"
        ),
        (_, Some(purged), applied) if applied < Some(purged) => format!(
            "metadata store {} was lost: Raft log {shown} starts after entry {purged}; stop another \
             master, copy its file here, and start both",
            store.path().display()
        ),
        _ => return Ok(()),
    };
    Err(FsError::new(Code::Io, text).into())
}

fn raft_config(name: &str, rank: usize) -> openraft::Config {
    let (min, max) = ELECTION_MS[rank.min(ELECTION_MS.len() - 1)];
    openraft::Config {
        cluster_name: name.to_owned(),
        heartbeat_interval: RAFT_HEARTBEAT.as_millis() as u64,
        election_timeout_min: min,
        election_timeout_max: max,
        // Snapshots are checkpoints, and those have their own trigger; so has the purge.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        ..openraft::Config::default()
    }
}

/// Writes a checkpoint whenever the changes in memory are many or old.
async fn checkpoints(raft: Raft, store: Arc<Store>, rank: usize) {
    let mut interval = CHECKPOINT_INTERVAL + CHECKPOINT_STAGGER * rank as u32;
    loop {
        let _ = timeout(interval, store.full.notified()).await;
        interval = CHECKPOINT_INTERVAL;
        if !store.is_dirty() {
            continue;
        }
        if !store.has_room() {
            tracing::error!(
                "no checkpoint: the disk of {} is full",
                store.path().display()
            );
            interval = FULL_PAUSE;
            continue;
        }
        if raft.trigger().snapshot().await.is_err() {
            return;
        }
    }
}

/// Cuts the log off behind each checkpoint, except for what lagging followers may still need.
async fn purges(raft: Raft, log: LogStore) {
    let mut metrics = raft.metrics();
    let mut seen = None;
    while metrics.changed().await.is_ok() {
        sleep(LOOK).await;
        let (snapshot, purged) = {
            let metrics = metrics.borrow_and_update();
            (metrics.snapshot, metrics.purged)
        };
        if snapshot == seen {
            continue;
        }
        seen = snapshot;
        let Some(snapshot) = snapshot else { continue };
        let Some(upto) = log.purgeable(RAFT_LOG_KEEP_ENTRIES, KEEP_BYTES) else {
            continue;
        };
        let upto = upto.min(snapshot.index);
        if purged.is_none_or(|purged| purged.index < upto)
            && raft.trigger().purge_log(upto).await.is_err()
        {
            return;
        }
    }
}

/// A member whose log or store failed must not go on: the process ends and is started anew.
async fn stop_when_broken(name: &'static str, raft: Raft) {
    let mut metrics = raft.metrics();
    loop {
        let broken = match metrics.borrow_and_update().running_state.clone() {
            Ok(()) => None,
            Err(Fatal::Stopped) => return,
            Err(error) => Some(error.to_string()),
        };
        if let Some(error) = broken {
            tracing::error!(
                group = name,
                error,
                "Raft group failed, stopping the process"
            );
            std::process::abort();
        }
        if metrics.changed().await.is_err() {
            // Give an orderly end of the runtime time to end this task first.
            sleep(Duration::from_secs(1)).await;
            tracing::error!(group = name, "Raft group panicked, stopping the process");
            std::process::abort();
        }
        sleep(LOOK).await;
    }
}
