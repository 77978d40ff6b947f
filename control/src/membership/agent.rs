//! The thread that speaks with the other nodes' control processes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use foca::State;

use super::identity::{Duty, Identity};
use super::readiness::Readiness;
use super::swim::Swim;
use super::{Liveness, MemberStatus, Members, MembershipStatus};
use crate::validate::MembershipSettings;

/// Longest wait for a message: also how late news of the own dataplane may be seen.
const LOOK: Duration = Duration::from_millis(50);
/// How often the view is looked at for what does not announce itself: suspicions.
const VIEW_EVERY: Duration = Duration::from_secs(1);
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
    /// Starts the thread; `wake` is called whenever [`Self::members`] says something else.
    ///
    /// # Errors
    /// The system has no thread left.
    pub fn start(
        settings: MembershipSettings,
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
}

/// What the thread has.
#[derive(Debug)]
struct Speaker {
    shared: Arc<Mutex<Shared>>,
    settings: MembershipSettings,
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
                let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
                let started = since_1970.unwrap_or_default();
                let generation = u64::try_from(started.as_millis()).unwrap_or(u64::MAX / 2);
                let seed = u64::from(started.subsec_nanos()) << 32 ^ generation;
                let identity = Identity { address: at.ip(), generation, duty: Duty::Away };
                self.readiness.set(Duty::Away, now);
                let mut swim = Swim::new(identity, self.settings.clone(), seed, now);
                swim.know(self.cluster.known(), now);
                self.link = Some(Link { socket, at, swim });
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
        };
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
        for (to, data) in self.swim.take_datagrams() {
            // A message that is lost is one of many.
            if let Err(error) = self.socket.send_to(&data, (to, port)) {
                tracing::debug!(%to, %error, "a membership message is not sent");
            }
        }
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
                    self.swim.receive(from, data, Instant::now());
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
mod tests {
    use super::*;

    fn until(what: &str, patience: Duration, is_so: impl Fn() -> bool) {
        let deadline = Instant::now() + patience;
        while !is_so() {
            assert!(Instant::now() < deadline, "{what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Two nodes on the loopback: one goes, the other notices; it comes back and waits its turn.
    #[test]
    fn two_agents_hear_of_each_other_and_of_each_others_end() {
        // A port that nothing has now; another process may take it all the same, then this says so.
        let free = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let settings = MembershipSettings {
            port: free,
            probe_interval: Duration::from_millis(200),
            suspicion: Duration::from_millis(1500),
            take_back_after: Duration::from_secs(4),
        };
        let start = |own: u8, other: u8| {
            let address = |number: u8| Some(IpAddr::from([127, 0, 0, number]));
            let agent = Agent::start(settings.clone(), || ()).unwrap();
            agent.set_cluster(Cluster {
                own: own.to_string(),
                own_address: address(own),
                others: [(other.to_string(), address(other))].into(),
            });
            agent.pulse().set_forwarding(Some(Instant::now() + Duration::from_secs(60)));
            agent
        };
        let patience = Duration::from_secs(20);
        let one = start(1, 2);
        until("alone, it takes all", patience, || one.members().may_answer());
        assert_eq!(one.warning(), None);
        assert_eq!(one.view().nodes()["2"].liveness, Liveness::Unknown);
        let two = start(2, 1);
        until("the other is heard", patience, || {
            one.view().nodes()["2"].liveness == Liveness::Standby
        });
        until("and hears the first", patience, || two.members().is_ready("1"));
        assert!(!two.members().is_ready("2"), "which has what there is");
        until("and ready in the end", patience, || one.members().is_ready("2"));
        two.pulse().set_forwarding(None);
        until("its dataplane", patience, || {
            one.view().nodes()["2"].liveness == Liveness::NotForwarding
        });
        assert!(!one.members().is_ready("2"));
        drop(two);
        until("farewell", patience, || one.view().nodes()["2"].liveness == Liveness::Dead);
        let counts = one.status().nodes;
        assert_eq!(counts, [(Liveness::Live, 1), (Liveness::Dead, 1)].into());
        assert!(one.status().datagrams.received > 0);
    }

    #[test]
    fn a_port_that_is_taken_is_a_warning_and_nothing_is_given_to_the_node() {
        let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let settings = MembershipSettings {
            port,
            probe_interval: Duration::from_millis(100),
            suspicion: Duration::from_millis(300),
            take_back_after: Duration::ZERO,
        };
        let agent = Agent::start(settings, || ()).unwrap();
        let own_address = Some(IpAddr::from([127, 0, 0, 1]));
        agent.set_cluster(Cluster { own: "a".into(), own_address, ..Cluster::default() });
        agent.pulse().set_forwarding(Some(Instant::now() + Duration::from_secs(60)));
        until("a warning", Duration::from_secs(5), || agent.warning().is_some());
        let warning = agent.warning().unwrap();
        assert!(warning.contains(&port.to_string()) && warning.contains("nothing is given"));
        assert!(!agent.members().is_ready("a"));
    }
}
