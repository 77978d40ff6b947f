//! The thread that speaks with the other nodes' control processes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use foca::State;

use super::identity::{Duty, Identity};
use super::keys::Keys;
use super::readiness::Readiness;
use super::seal::{self, Refused, Seal};
use super::swim::Swim;
use super::{Liveness, MemberStatus, Members, MembershipStatus};
use crate::validate::MembershipSettings;

/// Longest wait for a message: also how late news of the own dataplane may be seen.
const LOOK: Duration = Duration::from_millis(50);
/// How often the view is looked at for what does not announce itself: suspicions.
const VIEW_EVERY: Duration = Duration::from_secs(1);
/// How long it is said that a message was refused for the clock of its sender.
const SAID: Duration = Duration::from_secs(10);
/// How long after a failure the socket is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// The nodes of the cluster, by name, with the address at which each is heard.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cluster {
    /// This node's name.
    pub own: String,
    /// This node's address; absent while it is not known.
    pub own_address: Option<IpAddr>,
    /// The others. One without an address of the right family is never heard of.
    pub others: BTreeMap<String, Option<IpAddr>>,
}

impl Cluster {
    /// The addresses at which others are heard.
    fn known(&self) -> BTreeSet<IpAddr> {
        self.others.values().flatten().copied().collect()
    }
}

/// A node's state and when it began.
type Seen = (Liveness, Option<Instant>);

/// What the thread and the main loop tell each other.
#[derive(Debug)]
struct Shared {
    cluster: Arc<Cluster>,
    /// The own dataplane forwards, and has what it should, as was last known until then.
    forwarding_until: Option<Instant>,
    members: Members,
    seen: BTreeMap<String, Seen>,
    status: MembershipStatus,
    warning: Option<String>,
}

/// What is known of the nodes, for whoever asks.
#[derive(Debug, Clone)]
pub struct View(Arc<Mutex<Shared>>);

impl View {
    /// All nodes by name, this one among them.
    #[must_use]
    pub fn nodes(&self) -> BTreeMap<String, MemberStatus> {
        let seen = &lock(&self.0).seen;
        let status = |(liveness, since): &Seen| MemberStatus {
            liveness: *liveness,
            since_s: since.map(|since| since.elapsed().as_secs()),
        };
        seen.iter().map(|(name, seen)| (name.clone(), status(seen))).collect()
    }
}

/// Tells of the own dataplane.
#[derive(Debug, Clone)]
pub struct Pulse(Arc<Mutex<Shared>>);

impl Pulse {
    /// It forwards until then; none: it does not.
    pub fn set_forwarding(&self, until: Option<Instant>) {
        lock(&self.0).forwarding_until = until;
    }
}

/// Membership as the main loop sees it. Dropping this says farewell to the others.
#[derive(Debug)]
pub struct Agent {
    shared: Arc<Mutex<Shared>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Agent {
    /// Starts the thread; `wake` is called whenever [`Self::members`] says something else. With keys all
    /// messages are signed, and those that are not are taken only if `accept_unsigned` says so.
    ///
    /// # Errors
    /// The system has no thread left.
    pub fn start(
        settings: MembershipSettings,
        keys: Option<(Keys, bool)>,
        wake: impl Fn() + Send + 'static,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Mutex::new(Shared {
            cluster: Arc::default(),
            forwarding_until: None,
            members: Members::tracked(BTreeSet::new(), false),
            seen: BTreeMap::new(),
            status: MembershipStatus::default(),
            warning: None,
        }));
        let stop = Arc::new(AtomicBool::new(false));
        let now = Instant::now();
        let mut speaker = Speaker {
            shared: Arc::clone(&shared),
            readiness: Readiness::new(settings.take_back_after, now),
            settings,
            keys,
            cluster: Arc::default(),
            link: None,
            next_try: now,
            next_view: now,
        };
        let seen = Arc::clone(&stop);
        let run = move || {
            while !seen.load(Ordering::Relaxed) {
                if speaker.step() {
                    wake();
                }
            }
            speaker.leave();
        };
        let thread = std::thread::Builder::new().name("membership".into()).spawn(run)?;
        Ok(Self { shared, stop, thread: Some(thread) })
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        lock(&self.shared)
    }

    /// These are the nodes.
    pub fn set_cluster(&self, cluster: Cluster) {
        self.lock().cluster = Arc::new(cluster);
    }

    /// For whoever knows of the own dataplane.
    #[must_use]
    pub fn pulse(&self) -> Pulse {
        Pulse(Arc::clone(&self.shared))
    }

    /// For whoever asks about the nodes.
    #[must_use]
    pub fn view(&self) -> View {
        View(Arc::clone(&self.shared))
    }

    /// Which nodes can be given something.
    #[must_use]
    pub fn members(&self) -> Members {
        self.lock().members.clone()
    }

    /// In short.
    #[must_use]
    pub fn status(&self) -> MembershipStatus {
        self.lock().status.clone()
    }

    /// Why this node is not heard, if it is not.
    #[must_use]
    pub fn warning(&self) -> Option<String> {
        self.lock().warning.clone()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A socket and the protocol on it.
#[derive(Debug)]
struct Link {
    socket: UdpSocket,
    at: SocketAddr,
    swim: Swim,
    seal: Option<Seal>,
    /// A clock that differs too much, and when that was noticed.
    complaint: Option<(Instant, String)>,
}

/// What the thread has.
#[derive(Debug)]
struct Speaker {
    shared: Arc<Mutex<Shared>>,
    settings: MembershipSettings,
    /// What messages are signed with; and are those taken that are not?
    keys: Option<(Keys, bool)>,
    readiness: Readiness,
    cluster: Arc<Cluster>,
    link: Option<Link>,
    next_try: Instant,
    next_view: Instant,
}

impl Speaker {
    /// Waits for a message or for time to pass, and does what comes of it. Says whether other
    /// nodes than before can be given something.
    fn step(&mut self) -> bool {
        let now = Instant::now();
        let (cluster, forwarding) = {
            let shared = lock(&self.shared);
            let forwarding = shared.forwarding_until.is_some_and(|until| now < until);
            (Arc::clone(&shared.cluster), forwarding)
        };
        self.take_cluster(cluster, now);
        self.connect(now);
        let Some(link) = &mut self.link else {
            std::thread::sleep(LOOK);
            self.readiness.update(false, false, now);
            return self.view(now);
        };
        link.swim.poll(now);
        // Declared dead by mistake, it has told that it is less than it was.
        self.readiness.set(link.swim.identity().duty, now);
        self.readiness.update(forwarding, link.swim.others_ready(), now);
        link.swim.set_duty(self.readiness.duty(), now);
        link.send(self.settings.port);
        let changed = self.view(now);
        let wait = self.wait();
        let failed = self.link.as_mut().and_then(|link| link.receive(wait).err());
        if let Some(error) = failed {
            self.lose(&error);
        }
        changed
    }

    fn wait(&self) -> Duration {
        let now = Instant::now();
        let due = self.link.as_ref().map(|link| link.swim.deadline());
        let due = due.into_iter().chain(self.readiness.deadline().filter(|at| *at > now)).min();
        let wait = due.map_or(LOOK, |due| due.saturating_duration_since(now));
        wait.clamp(Duration::from_millis(1), LOOK)
    }

    /// Other nodes than before may be of the cluster.
    fn take_cluster(&mut self, cluster: Arc<Cluster>, now: Instant) {
        if Arc::ptr_eq(&cluster, &self.cluster) {
            return;
        }
        self.cluster = cluster;
        self.next_view = now;
        self.readiness.set_nodes(self.cluster.others.len() + 1);
        if let Some(link) = &mut self.link {
            link.swim.know(self.cluster.known(), now);
        }
    }

    /// Opens the socket, or another one when the address has changed.
    fn connect(&mut self, now: Instant) {
        let wanted = self.cluster.own_address.map(|own| SocketAddr::new(own, self.settings.port));
        if self.link.as_ref().map(|link| link.at) == wanted || now < self.next_try {
            return;
        }
        self.link = None;
        let Some(at) = wanted else { return };
        match UdpSocket::bind(at) {
            Ok(socket) => {
                let started = since_1970();
                let generation = u64::try_from(started.as_millis()).unwrap_or(u64::MAX / 2);
                let seed = u64::from(started.subsec_nanos()) << 32 ^ generation;
                let identity = Identity { address: at.ip(), generation, duty: Duty::Away };
                self.readiness.set(Duty::Away, now);
                let mut swim = Swim::new(identity, self.settings.clone(), seed, now);
                swim.know(self.cluster.known(), now);
                let seal = self.keys.as_ref().map(|(keys, accept_unsigned)| {
                    Seal::new(keys.clone(), *accept_unsigned, at.ip(), since_1970_us())
                });
                self.link = Some(Link { socket, at, swim, seal, complaint: None });
                lock(&self.shared).warning = None;
                tracing::info!(%at, "membership messages are heard");
            }
            Err(error) => {
                self.next_try = now + RETRY;
                let text = format!(
                    "membership: cannot hear at UDP {at}: {error}; nothing is given to this node until it can"
                );
                let mut shared = lock(&self.shared);
                if shared.warning.as_ref() != Some(&text) {
                    tracing::warn!("{text}");
                    shared.warning = Some(text);
                }
            }
        }
    }

    fn lose(&mut self, error: &std::io::Error) {
        tracing::warn!(%error, "the membership socket broke; opening another");
        self.link = None;
        self.next_try = Instant::now() + RETRY;
    }

    /// Brings what others see of the nodes up to date. Says whether other nodes than before can be
    /// given something.
    fn view(&mut self, now: Instant) -> bool {
        let changed = self.link.as_mut().is_some_and(|link| link.swim.take_changed());
        let duty = self.readiness.duty();
        let may_answer = self.readiness.may_answer(now);
        let own_changed = {
            let shared = lock(&self.shared);
            shared.status.duty != Some(duty) || shared.members.may_answer() != may_answer
        };
        if !changed && !own_changed && now < self.next_view {
            return false;
        }
        self.next_view = now + VIEW_EVERY;
        let mut states = self.states();
        if !self.cluster.own.is_empty() {
            states.insert(self.cluster.own.clone(), own_state(duty));
        }
        let ready = states.iter().filter(|(_, state)| state.is_ready());
        let ready: BTreeSet<String> = ready.map(|(name, _)| name.clone()).collect();
        let members = Members::tracked(ready, may_answer);
        let mut counts = BTreeMap::new();
        for state in states.values() {
            *counts.entry(*state).or_default() += 1;
        }
        let mut shared = lock(&self.shared);
        let before = std::mem::take(&mut shared.seen);
        shared.seen = states
            .into_iter()
            .map(|(name, state)| {
                let since = match before.get(&name) {
                    Some((same, since)) if *same == state => *since,
                    Some(_) => Some(now),
                    None if state == Liveness::Unknown => None,
                    None => Some(now),
                };
                (name, (state, since))
            })
            .collect();
        let datagrams = self.link.as_ref().map(|link| link.swim.datagrams());
        shared.status = MembershipStatus {
            address: self.link.as_ref().map(|link| link.at),
            duty: Some(duty),
            nodes: counts,
            datagrams: datagrams.unwrap_or_default(),
            authenticated: self.keys.as_ref().is_some_and(|(_, accept_unsigned)| !accept_unsigned),
        };
        if let Some(link) = &self.link {
            let recent = link.complaint.as_ref().filter(|(at, _)| now < *at + SAID);
            shared.warning = recent.map(|(_, text)| text.clone());
        }
        if shared.members == members {
            return false;
        }
        shared.members = members;
        true
    }

    /// The other nodes by name.
    fn states(&self) -> BTreeMap<String, Liveness> {
        let members = self.link.iter().flat_map(|link| link.swim.members());
        let by_address: BTreeMap<IpAddr, Liveness> = members
            .map(|(identity, state)| (identity.address, liveness(state, identity.duty)))
            .collect();
        let of = |address: &Option<IpAddr>| {
            address
                .and_then(|address| by_address.get(&address).copied())
                .unwrap_or(Liveness::Unknown)
        };
        self.cluster.others.iter().map(|(name, address)| (name.clone(), of(address))).collect()
    }

    fn leave(&mut self) {
        if let Some(link) = &mut self.link {
            link.swim.leave(Instant::now());
            link.send(self.settings.port);
        }
    }
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

fn since_1970_us() -> u64 {
    u64::try_from(since_1970().as_micros()).unwrap_or(u64::MAX / 2)
}

const fn own_state(duty: Duty) -> Liveness {
    liveness(State::Alive, duty)
}

const fn liveness(state: State, duty: Duty) -> Liveness {
    match (state, duty) {
        (State::Down, _) => Liveness::Dead,
        (_, Duty::Away) => Liveness::NotForwarding,
        (_, Duty::Standby) => Liveness::Standby,
        (State::Suspect, Duty::Ready) => Liveness::Suspect,
        (State::Alive, Duty::Ready) => Liveness::Live,
    }
}

impl Link {
    fn send(&mut self, port: u16) {
        for (to, mut data) in self.swim.take_datagrams() {
            if let Some(seal) = &mut self.seal {
                data = seal.seal(to, &data, since_1970_us());
            }
            // A message that is lost is one of many.
            if let Err(error) = self.socket.send_to(&data, (to, port)) {
                tracing::debug!(%to, %error, "a membership message is not sent");
            }
        }
    }

    /// Takes what came, if it is to be believed.
    fn take(&mut self, from: SocketAddr, data: &[u8]) {
        let opened = match &mut self.seal {
            // Strangers are counted there, and do not cost a hash.
            Some(seal) if self.swim.is_expected(from) => {
                seal.open(from.ip(), data, since_1970_us())
            }
            _ => Ok(seal::unsealed(data)),
        };
        match opened {
            Ok(message) => self.swim.receive(from, message, Instant::now()),
            Err(refused) => {
                self.swim.refuse(refused);
                self.complain(from, refused);
            }
        }
    }

    /// Says so when a node's clock is why nothing it says is believed.
    fn complain(&mut self, from: SocketAddr, refused: Refused) {
        let now = Instant::now();
        let Refused::Stale { ahead_us } = refused else { return };
        if ahead_us.unsigned_abs() <= seal::SKEW_US {
            // From before this node was started; the next one is not.
            return;
        }
        if self.complaint.as_ref().is_some_and(|(at, _)| now < *at + SAID / 2) {
            return;
        }
        let (seconds, side) =
            (ahead_us.unsigned_abs() / 1_000_000, if ahead_us > 0 { "ahead of" } else { "behind" });
        let text = format!(
            "membership: messages of {} are refused: its clock is {seconds} s {side} this node's; set both by NTP",
            from.ip()
        );
        tracing::warn!("{text}");
        self.complaint = Some((now, text));
    }

    /// Waits at most so long for a message; takes those that are there.
    fn receive(&mut self, wait: Duration) -> std::io::Result<()> {
        const AT_ONCE: usize = 64;
        let port = self.at.port();
        let mut buffer = [0; 2048];
        self.socket.set_nonblocking(false)?;
        self.socket.set_read_timeout(Some(wait))?;
        for turn in 0..AT_ONCE {
            match self.socket.recv_from(&mut buffer) {
                Ok((length, from)) => {
                    let data = buffer.get(..length).unwrap_or_default();
                    self.take(from, data);
                    self.send(port);
                }
                Err(error) => return if is_harmless(&error) { Ok(()) } else { Err(error) },
            }
            if turn == 0 {
                self.socket.set_nonblocking(true)?;
            }
        }
        Ok(())
    }
}

/// Nothing came, or word that somebody else is not there.
fn is_harmless(error: &std::io::Error) -> bool {
    use std::io::ErrorKind as K;
    matches!(
        error.kind(),
        K::WouldBlock | K::TimedOut | K::Interrupted | K::ConnectionRefused | K::HostUnreachable
    )
}

#[cfg(test)]
#[path = "agent_tests.rs"]
mod tests;
