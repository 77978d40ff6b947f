//! Desired against installed: pushes the difference to the dataplane, in an order in which no
//! packet meets a half-made change.
//!
//! ```text
//!              connect, hello, installed            hello: same instance
//!  Disconnected ------------------------> Connected --------------------+
//!       ^  backoff 50 .. 250 ms              |   ^                      |
//!       +------------- any lost call --------+   +----------------------+
//! ```
//!
//! The dataplane is asked what it has whenever it is met anew, and again every ten seconds. Only
//! what differs is sent; where nothing differs, nothing is.

mod batch;
mod order;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use overlane_api::client::{Client, ClientError};
use overlane_api::protocol::{ApiError, ErrorCode, MAX_REQUEST_BYTES, Op, Reply};
use overlane_api::{Change, Object, ObjectKey};

use crate::status::{Connection, ControlStatus, Counts, Refused};

/// First wait after a lost connection.
const FIRST_BACKOFF: Duration = Duration::from_millis(50);
/// Longest wait: pods have no network while the dataplane waits for its objects, and asking whether
/// the socket is there costs next to nothing.
const MAX_BACKOFF: Duration = Duration::from_millis(250);
/// How often the dataplane is asked who it is: a restart is noticed this fast even when the
/// connection did not break.
const HELLO_EVERY: Duration = Duration::from_secs(1);
/// How often everything is compared without a reason.
const COMPARE_EVERY: Duration = Duration::from_secs(10);
/// Comparing takes at most this part of the time: one in so many.
const COMPARE_SHARE: u32 = 200;
/// Longest wait for one answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a push is repeated for what was refused while other changes came through: an
/// address may only be free once its old owner has let go.
const MAX_PASSES: usize = 3;

/// An object with its digest, so that unchanged ones are digested once.
#[derive(Debug)]
struct Wanted {
    object: Object,
    digest: u64,
    /// Frontends that the installed one has and this one has not.
    gives_up: BTreeSet<order::Key>,
}

/// A refusal and the digest of what was refused (0 for a removal).
#[derive(Debug)]
struct Rejection {
    digest: u64,
    error: ApiError,
}

/// Keeps one dataplane as it should be.
#[derive(Debug)]
pub struct Reconciler {
    socket: PathBuf,
    desired: BTreeMap<ObjectKey, Wanted>,
    /// Nothing is removed while the desired state is incomplete or not yet known.
    keep_absent: bool,
    installed: BTreeMap<ObjectKey, u64>,
    /// What is desired and not installed so, or installed and not desired.
    differs: BTreeSet<ObjectKey>,
    /// How much is desired of each kind.
    counts: Counts,
    rejected: BTreeMap<ObjectKey, Rejection>,
    warnings: Vec<String>,
    link: Link,
    /// Has everything been pushed since the dataplane was met?
    is_settled: bool,
    backoff: Duration,
    next_try: Option<Instant>,
}

#[derive(Debug)]
enum Link {
    Down {
        error: String,
    },
    Up {
        client: Client,
        version: String,
        instance: u64,
        next_hello: Instant,
        next_compare: Instant,
    },
}

impl Reconciler {
    /// For the dataplane at `socket`.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
            desired: BTreeMap::new(),
            keep_absent: true,
            installed: BTreeMap::new(),
            differs: BTreeSet::new(),
            counts: Counts::default(),
            rejected: BTreeMap::new(),
            warnings: Vec::new(),
            link: Link::Down { error: String::new() },
            is_settled: false,
            backoff: FIRST_BACKOFF,
            next_try: None,
        }
    }

    /// Sets what should be of `changed`: as it is in `objects`, and what is not there, not. While
    /// that is `incomplete`, nothing is removed. It is pushed by the next [`Self::step`].
    pub fn want(
        &mut self,
        objects: &BTreeMap<ObjectKey, Object>,
        changed: &[ObjectKey],
        incomplete: bool,
    ) {
        self.keep_absent = incomplete;
        for key in changed {
            match objects.get(key) {
                Some(object) => self.want_object(key, object),
                None => {
                    if self.desired.remove(key).is_some() {
                        *self.counts.of_kind(key) -= 1;
                    }
                }
            }
            self.compare(key);
        }
        // What was refused may be right in new company.
        self.rejected.clear();
    }

    fn want_object(&mut self, key: &ObjectKey, object: &Object) {
        let mut gives_up = BTreeSet::new();
        if let (Some(before), Object::Service(now)) = (self.desired.get(key), object) {
            gives_up.clone_from(&before.gives_up);
            if let Object::Service(before) = &before.object {
                gives_up.extend(order::keys(before));
            }
            order::keys(now).for_each(|key| {
                gives_up.remove(&key);
            });
        }
        let wanted = Wanted { object: object.clone(), digest: object.digest(), gives_up };
        if self.desired.insert(key.clone(), wanted).is_none() {
            *self.counts.of_kind(key) += 1;
        }
    }

    /// Notes whether what is desired and what is installed of `key` are the same.
    fn compare(&mut self, key: &ObjectKey) {
        let wanted = self.desired.get(key).map(|wanted| wanted.digest);
        // The node itself is only ever replaced.
        let is_kept = wanted.is_none() && *key == ObjectKey::Node;
        if is_kept || wanted == self.installed.get(key).copied() {
            self.differs.remove(key);
        } else {
            self.differs.insert(key.clone());
        }
    }

    fn set_installed(&mut self, installed: BTreeMap<ObjectKey, u64>) {
        self.installed = installed;
        let keys: BTreeSet<ObjectKey> =
            self.installed.keys().chain(self.desired.keys()).cloned().collect();
        self.differs.clear();
        keys.iter().for_each(|key| self.compare(key));
    }

    /// Does what is due at `now`, and says how long nothing else will be. Blocks as long as the
    /// dataplane takes to answer, at most a few seconds.
    pub fn step(&mut self, now: Instant) -> Duration {
        match self.try_step(now) {
            Ok(()) => {
                let has_node = self.installed.contains_key(&ObjectKey::Node);
                let wants_node = self.desired.contains_key(&ObjectKey::Node);
                self.is_settled = self.is_connected() && has_node && wants_node;
            }
            Err(error) => self.lose(&error, now),
        }
        let due = match &self.link {
            Link::Down { .. } => self.next_try,
            Link::Up { next_hello, next_compare, .. } => Some(*next_hello.min(next_compare)),
        };
        due.map_or(Duration::ZERO, |due| due.saturating_duration_since(Instant::now()))
    }

    fn try_step(&mut self, now: Instant) -> Result<(), ClientError> {
        match &mut self.link {
            Link::Down { .. } => {
                if self.next_try.is_some_and(|next| now < next) {
                    return Ok(());
                }
                self.connect(now)?;
            }
            Link::Up { client, instance, next_hello, next_compare, .. } => {
                if now >= *next_hello {
                    let (_, found) = hello(client)?;
                    *next_hello = now + HELLO_EVERY;
                    if found != *instance {
                        tracing::info!(
                            "another dataplane answers at the socket; comparing everything"
                        );
                        *instance = found;
                        *next_compare = now;
                        self.rejected.clear();
                    }
                }
                if now >= *next_compare {
                    let answer = installed(client)?;
                    // Much to compare is compared less often: a change may have to wait for it.
                    *next_compare = now + COMPARE_EVERY.max(now.elapsed() * COMPARE_SHARE);
                    self.set_installed(answer);
                    // Trying again helps only where it is the dataplane's own trouble.
                    self.rejected.retain(|_, rejection| rejection.error.code != ErrorCode::Failed);
                }
            }
        }
        self.push()
    }

    fn connect(&mut self, now: Instant) -> Result<(), ClientError> {
        let mut client = Client::connect(&self.socket, CALL_TIMEOUT)?;
        let (version, instance) = hello(&mut client)?;
        let answer = installed(&mut client)?;
        self.set_installed(answer);
        self.rejected.clear();
        tracing::info!(socket = %self.socket.display(), version, objects = self.installed.len(), "connected to the dataplane");
        self.backoff = FIRST_BACKOFF;
        let (next_hello, next_compare) = (now + HELLO_EVERY, now + COMPARE_EVERY);
        self.link = Link::Up { client, version, instance, next_hello, next_compare };
        Ok(())
    }

    fn lose(&mut self, error: &ClientError, now: Instant) {
        let text = error.to_string();
        match &self.link {
            Link::Down { error } if *error == text => {}
            _ => tracing::warn!("{text}; trying again, forwarding is not affected"),
        }
        self.link = Link::Down { error: text };
        self.is_settled = false;
        self.set_installed(BTreeMap::new());
        self.next_try = Some(now + self.backoff);
        self.backoff = (self.backoff * 2).min(MAX_BACKOFF);
    }

    fn push(&mut self) -> Result<(), ClientError> {
        for _ in 0..MAX_PASSES {
            let changes = self.difference();
            if changes.is_empty() {
                return Ok(());
            }
            let (count, before) = (changes.len(), self.rejected.len());
            self.warnings.clear();
            for batch in batch::batches(&changes) {
                self.apply(batch)?;
                if self.node_is_missing() {
                    return Ok(());
                }
            }
            let refused = self.rejected.len() - before;
            tracing::info!(changes = count, refused, "pushed to the dataplane");
            if refused == 0 || refused == count {
                return Ok(());
            }
            self.rejected.clear();
        }
        // Ends with the refusals of one more pass on record.
        let changes = self.difference();
        for batch in batch::batches(&changes) {
            self.apply(batch)?;
        }
        Ok(())
    }

    /// Nothing else makes sense to a dataplane that does not know its node.
    fn node_is_missing(&self) -> bool {
        self.rejected.contains_key(&ObjectKey::Node)
            && !self.installed.contains_key(&ObjectKey::Node)
    }

    /// What has to change, in order: a peer is there before its endpoints and goes after them, a
    /// backend before its service, and an address is let go before another takes it. What this node
    /// is not to answer for any more comes first, what it is to, last: then it can serve it.
    fn difference(&self) -> Vec<Change> {
        let is_announcement = |key: &ObjectKey| matches!(key, ObjectKey::Announcement(_));
        let wanted = |kind: fn(&ObjectKey) -> bool| {
            self.differs
                .iter()
                .filter(move |key| kind(key))
                .filter_map(|key| self.desired.get(key).map(|wanted| (key, wanted)))
                .filter(|(key, wanted)| !self.is_rejected(key, wanted.digest))
                .map(|(_, wanted)| wanted)
        };
        let set = |kind: fn(&ObjectKey) -> bool| {
            wanted(kind).map(|wanted| Change::Set(wanted.object.clone()))
        };
        let remove = |kind: fn(&ObjectKey) -> bool| {
            self.surplus()
                .filter(move |key| kind(key))
                // Another node answers for what this one is not to: that is known for certain.
                .filter(|key| !self.keep_absent || is_announcement(key))
                .filter(|key| !self.is_rejected(key, 0))
                .map(|key| Change::Remove(key.clone()))
        };
        let is_peer = |key: &ObjectKey| matches!(key, ObjectKey::Peer(_));
        let is_endpoint = |key: &ObjectKey| matches!(key, ObjectKey::Endpoint(_));
        let is_service = |key: &ObjectKey| matches!(key, ObjectKey::Service(_));
        let is_egress = |key: &ObjectKey| matches!(key, ObjectKey::Egress(_));
        let services = wanted(is_service).filter_map(|wanted| match &wanted.object {
            Object::Service(service) => Some(order::Next { service, gives_up: &wanted.gives_up }),
            _ => None,
        });
        remove(is_announcement)
            .chain(set(|key| *key == ObjectKey::Node))
            .chain(set(is_peer))
            .chain(remove(is_endpoint))
            .chain(set(is_endpoint))
            .chain(remove(is_service))
            .chain(order::changes(services.collect()))
            .chain(remove(is_egress))
            .chain(set(is_egress))
            .chain(remove(is_peer))
            .chain(set(is_announcement))
            .collect()
    }

    /// What is installed and not desired.
    fn surplus(&self) -> impl Iterator<Item = &ObjectKey> {
        self.differs.iter().filter(|key| !self.desired.contains_key(*key))
    }

    fn is_rejected(&self, key: &ObjectKey, digest: u64) -> bool {
        self.rejected.get(key).is_some_and(|rejection| rejection.digest == digest)
    }

    /// Applies a batch; when it is refused, its halves, so that what is wrong stands alone.
    fn apply(&mut self, changes: &[Change]) -> Result<(), ClientError> {
        if let [change] = changes
            && batch::is_too_large(change)
        {
            let text = format!("it has more than {MAX_REQUEST_BYTES} bytes");
            let error = ApiError::new(ErrorCode::Refused, text).hint("make several of it");
            self.note_rejected(change, error);
            return Ok(());
        }
        let Link::Up { client, .. } = &mut self.link else { return Ok(()) };
        match client.call(Op::Apply { changes: changes.to_vec() }) {
            Ok(Reply::Applied { warnings, .. }) => {
                self.warnings.extend(warnings);
                changes.iter().for_each(|change| self.note_installed(change));
                Ok(())
            }
            Ok(other) => Err(unexpected(&self.socket, "apply", &other)),
            Err(ClientError::Refused(error))
                if !matches!(error.code, ErrorCode::Version | ErrorCode::Denied) =>
            {
                match changes {
                    [] => Ok(()),
                    [change] => {
                        self.note_rejected(change, error);
                        Ok(())
                    }
                    _ => {
                        let (first, second) = changes.split_at(changes.len() / 2);
                        self.apply(first)?;
                        self.apply(second)
                    }
                }
            }
            Err(error) => Err(error),
        }
    }

    fn note_installed(&mut self, change: &Change) {
        match change {
            Change::Set(object) => {
                let key = object.key();
                if let Some(wanted) = self.desired.get_mut(&key) {
                    wanted.gives_up.clear();
                    self.installed.insert(key.clone(), wanted.digest);
                }
                self.compare(&key);
            }
            Change::Remove(key) => {
                self.installed.remove(key);
                self.compare(key);
            }
        }
    }

    fn note_rejected(&mut self, change: &Change, error: ApiError) {
        let (key, digest) = match change {
            Change::Set(object) => {
                let key = object.key();
                let digest = self.desired.get(&key).map_or(0, |wanted| wanted.digest);
                (key, digest)
            }
            Change::Remove(key) => (key.clone(), 0),
        };
        tracing::error!("refused: {key}: {error}");
        self.rejected.insert(key, Rejection { digest, error });
    }

    /// Does the dataplane have what it should, or has it said why not, since it was met?
    #[must_use]
    pub const fn is_settled(&self) -> bool {
        self.is_settled
    }

    /// Does the dataplane answer?
    #[must_use]
    pub const fn is_connected(&self) -> bool {
        matches!(self.link, Link::Up { .. })
    }

    /// Puts what is known here into `status`.
    pub fn report(&self, status: &mut ControlStatus) {
        status.desired = self.counts;
        status.dataplane = match &self.link {
            Link::Down { error } => Connection::Disconnected { error: error.clone() },
            Link::Up { version, instance, .. } => {
                Connection::Connected { version: version.clone(), instance: *instance }
            }
        };
        let surplus = self.surplus().count();
        status.in_force = self.desired.len() - (self.differs.len() - surplus);
        status.held_back = if self.keep_absent { surplus } else { 0 };
        status.warnings.clone_from(&self.warnings);
        status.refused = self
            .rejected
            .iter()
            .map(|(key, rejection)| Refused { object: key.clone(), error: rejection.error.clone() })
            .collect();
    }
}

fn hello(client: &mut Client) -> Result<(String, u64), ClientError> {
    match client.call(Op::Hello)? {
        Reply::Hello { version, instance } => Ok((version, instance)),
        other => Err(unexpected(Path::new("the dataplane"), "hello", &other)),
    }
}

fn installed(client: &mut Client) -> Result<BTreeMap<ObjectKey, u64>, ClientError> {
    match client.call(Op::Installed)? {
        Reply::Installed { objects } => Ok(objects.into_iter().collect()),
        other => Err(unexpected(Path::new("the dataplane"), "installed", &other)),
    }
}

fn unexpected(path: &Path, asked: &str, reply: &Reply) -> ClientError {
    let what = format!("an answer of another kind to {asked}: {reply:?}");
    ClientError::Protocol { path: path.to_owned(), what }
}
