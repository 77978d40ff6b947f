//! Where on the underlay a packet for another node goes: the kernel's route to it, and the MAC of
//! the next hop.
//!
//! The kernel resolves and checks neighbours; this table asks it to, and follows along. Workers
//! send past the kernel, so it would take an entry for unused and let it go stale: the table has
//! it checked again, at once when it goes stale and otherwise every [`REFRESH`].
//!
//! ```text
//!   destination --route lookup--> (interface, next hop) --neighbour entry--> MAC
//!      10,000         again when routes, rules,   1 or 10,000    again when it is stale,
//!                     addresses or links change                  failed or deleted
//! ```
//!
//! A neighbour of an interface can be followed without a route, too: the gateway of a route is one.
//!
//! A MAC stays in use while its entry is being resolved anew, until the kernel says that nobody
//! answers.

mod kernel;
mod outcome;

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use netlink_packet_route::neighbour::NeighbourState;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use overlane_api::MacAddr;

use super::netlink::{Events, Group, Heard, Netlink, NetlinkError};
use kernel::{Entry, Key, Via};
pub use outcome::{NeighborEvent, Outcome, Resolution, Unresolved, WatchError};

/// Time after which a neighbour in use is checked again.
pub const REFRESH: Duration = Duration::from_secs(30);

/// Shortest time between two requests to check the same neighbour, and the first wait after a
/// failure; it doubles with every further one, up to [`REFRESH`].
const PROBE_GAP: Duration = Duration::from_secs(1);

/// Time the kernel has to resolve a neighbour before it is asked again: its own three attempts
/// take three seconds.
const RESOLVE_WAIT: Duration = Duration::from_secs(5);

/// Shortest time between two rounds of looking up all routes.
const ROUTE_GAP: Duration = Duration::from_secs(1);

/// Bounds of one [`NeighborTable::process`] or [`NeighborTable::tick`].
const DATAGRAMS_PER_CALL: usize = 256;
const LOOKUPS_PER_CALL: usize = 256;
const EVENTS_PER_CALL: usize = 2048;

/// What is watched: an address, by whichever route it has, or on an interface.
type Watched = (Option<u32>, IpAddr);

/// What is known of it.
#[derive(Debug, Default)]
struct Watch {
    via: Option<Result<Via, Unresolved>>,
    reported: Option<Outcome>,
    lookup_queued: bool,
    report_queued: bool,
}

/// A neighbour that destinations are reached by.
#[derive(Debug)]
struct NextHop {
    mac: Option<MacAddr>,
    state: Option<NeighbourState>,
    users: HashSet<Watched>,
    failures: u32,
    probed_at: Option<Instant>,
    probe_at: Option<Instant>,
}

/// The next hops of all watched destinations, in the namespace of the thread that made it.
#[derive(Debug)]
pub struct NeighborTable {
    netlink: Netlink,
    events: Events,
    watches: HashMap<Watched, Watch>,
    next_hops: HashMap<Key, NextHop>,
    /// Next hops by the time when they are to be checked.
    timers: BTreeSet<(Instant, Key)>,
    lookups: VecDeque<Watched>,
    rereads: VecDeque<Key>,
    reports: VecDeque<Watched>,
    routes_changed: bool,
    route_news: u64,
    round_at: Option<Instant>,
    overflows: u64,
    lost: bool,
    unread: bool,
}

impl NeighborTable {
    /// An empty table.
    ///
    /// # Errors
    /// When netlink sockets cannot be opened.
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Self {
            events: Events::subscribe(&[
                Group::Neighbor,
                Group::Link,
                Group::Ipv4Route,
                Group::Ipv6Route,
                Group::Ipv4Rule,
                Group::Ipv6Rule,
                Group::Ipv4Address,
                Group::Ipv6Address,
            ])?,
            netlink: Netlink::open()?,
            watches: HashMap::new(),
            next_hops: HashMap::new(),
            timers: BTreeSet::new(),
            lookups: VecDeque::new(),
            rereads: VecDeque::new(),
            reports: VecDeque::new(),
            routes_changed: false,
            route_news: 0,
            round_at: None,
            overflows: 0,
            lost: false,
            unread: false,
        })
    }

    /// Readable when the kernel has news for [`Self::process`].
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.events.fd()
    }

    /// Is there more to [`Self::process`] at once, whether or not [`Self::fd`] is readable?
    #[must_use]
    pub fn is_busy(&self) -> bool {
        let queued = [self.lookups.len(), self.rereads.len(), self.reports.len()];
        self.unread || queued != [0; 3]
    }

    /// Times that news were lost and everything was read again.
    #[must_use]
    pub const fn overflows(&self) -> u64 {
        self.overflows
    }

    /// Counts up when routes, rules, addresses or links may have changed.
    #[must_use]
    pub const fn route_news(&self) -> u64 {
        self.route_news
    }

    /// Starts to follow `destination`; its state will be an event. Again is no error and no
    /// event.
    ///
    /// # Errors
    /// [`WatchError`] when it can be no other node's address.
    pub fn watch(&mut self, destination: IpAddr) -> Result<(), WatchError> {
        self.start((None, destination))
    }

    /// Starts to follow the neighbour `address` of an interface, as [`Self::watch`] does.
    ///
    /// # Errors
    /// As [`Self::watch`].
    pub fn watch_neighbor(&mut self, ifindex: u32, address: IpAddr) -> Result<(), WatchError> {
        self.start((Some(ifindex), address))
    }

    fn start(&mut self, watched: Watched) -> Result<(), WatchError> {
        let (_, address) = watched;
        let broadcast = address == IpAddr::V4(std::net::Ipv4Addr::BROADCAST);
        let special = address.is_multicast() || address.is_loopback() || address.is_unspecified();
        if broadcast || special {
            return Err(WatchError::NotUnicast(address));
        }
        self.watches.entry(watched).or_default();
        self.queue_lookup(watched);
        Ok(())
    }

    /// Stops following `destination`. Events about it that were not yet told are not any more.
    pub fn unwatch(&mut self, destination: IpAddr) {
        self.stop((None, destination));
    }

    /// Stops following a neighbour, as [`Self::unwatch`] does.
    pub fn unwatch_neighbor(&mut self, ifindex: u32, address: IpAddr) {
        self.stop((Some(ifindex), address));
    }

    fn stop(&mut self, watched: Watched) {
        if let Some(Watch { via: Some(Ok(via)), .. }) = self.watches.remove(&watched) {
            self.leave(via.key, watched);
        }
    }

    /// The state last told of `destination`.
    #[must_use]
    pub fn outcome(&self, destination: IpAddr) -> Option<&Outcome> {
        self.watches.get(&(None, destination))?.reported.as_ref()
    }

    /// The state last told of a neighbour.
    #[must_use]
    pub fn neighbor_outcome(&self, ifindex: u32, address: IpAddr) -> Option<&Outcome> {
        self.watches.get(&(Some(ifindex), address))?.reported.as_ref()
    }

    /// Reads the kernel's news, looks up what needs it and tells what has changed: a bounded
    /// amount of each, never waiting for anything to happen. When [`Self::is_busy`] afterwards,
    /// there is more.
    ///
    /// # Errors
    /// When the kernel cannot be asked. What was not done is done by the next call.
    pub fn process(&mut self, now: Instant) -> Result<Vec<NeighborEvent>, NetlinkError> {
        self.unread = true;
        for _ in 0..DATAGRAMS_PER_CALL {
            match self.events.hear()? {
                Heard::Changes(changes) => {
                    for change in &changes {
                        self.take(change, now);
                    }
                }
                Heard::Lost => self.lost = true,
                Heard::Quiet => {
                    self.unread = false;
                    break;
                }
            }
        }
        // Not before the socket is empty: until then the kernel goes on throwing news away.
        if self.lost && !self.unread {
            self.overflow();
        }
        self.start_round(now);
        self.look_up(now)?;
        Ok(self.tell())
    }

    /// Does what is due by now: checks neighbours, and starts the lookups that were put off. To
    /// be called about ten times a second.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn tick(&mut self, now: Instant) -> Result<(), NetlinkError> {
        self.start_round(now);
        for _ in 0..LOOKUPS_PER_CALL {
            let Some(&(at, key)) = self.timers.first().filter(|(at, _)| *at <= now) else { break };
            self.timers.remove(&(at, key));
            self.check(key, now)?;
        }
        Ok(())
    }

    /// Has the kernel check a neighbour, unless an administrator has fixed it.
    fn check(&mut self, key: Key, now: Instant) -> Result<(), NetlinkError> {
        let entry = kernel::neighbor(&mut self.netlink, key)?;
        let Some(hop) = self.next_hops.get_mut(&key) else { return Ok(()) };
        let mac = entry.and_then(|entry| entry.usable());
        let moved = mac.is_some() && mac != hop.mac;
        if moved || hop.state != entry.map(|entry| entry.state) {
            self.update(key, entry, now);
        }
        let Some(hop) = self.next_hops.get_mut(&key) else { return Ok(()) };
        if matches!(hop.state, Some(NeighbourState::Permanent | NeighbourState::Noarp)) {
            return Ok(());
        }
        hop.probed_at = Some(now);
        let wait = if hop.mac.is_some() { REFRESH } else { RESOLVE_WAIT };
        set_timer(&mut self.timers, hop, key, Some(now + wait));
        match kernel::solicit(&mut self.netlink, key) {
            // The interface is down or gone: the routes will follow.
            Err(error) if error.errno().is_some() => {
                tracing::debug!(%error, "cannot have a neighbour checked");
                Ok(())
            }
            outcome => outcome,
        }
    }

    fn take(&mut self, change: &RouteNetlinkMessage, now: Instant) {
        use RouteNetlinkMessage as M;
        match change {
            M::NewNeighbour(message) => {
                if let Some((key, entry)) = kernel::read_neighbor(message) {
                    self.update(key, Some(entry), now);
                }
            }
            M::DelNeighbour(message) => {
                if let Some((key, _)) = kernel::read_neighbor(message) {
                    self.update(key, None, now);
                }
            }
            M::NewRoute(_) | M::DelRoute(_) | M::NewRule(_) | M::DelRule(_) => self.reroute(),
            M::NewAddress(_) | M::DelAddress(_) => self.reroute(),
            M::NewLink(message) | M::DelLink(message)
                if message.header.interface_family == AddressFamily::Unspec =>
            {
                self.reroute();
            }
            _ => {}
        }
    }

    fn reroute(&mut self) {
        self.routes_changed = true;
        self.route_news += 1;
    }

    /// After lost news nothing that was read before can be relied on.
    fn overflow(&mut self) {
        self.lost = false;
        self.overflows += 1;
        self.reroute();
        self.round_at = None;
        self.rereads = self.next_hops.keys().copied().collect();
        tracing::warn!(overflows = self.overflows, "lost neighbour events, reading all again");
    }

    /// Queues a lookup of every destination if routes have changed, but not too often.
    fn start_round(&mut self, now: Instant) {
        let early = self.round_at.is_some_and(|at| now.saturating_duration_since(at) < ROUTE_GAP);
        if !self.routes_changed || early {
            return;
        }
        self.routes_changed = false;
        self.round_at = Some(now);
        for (watched, watch) in &mut self.watches {
            if watched.0.is_none() && !std::mem::replace(&mut watch.lookup_queued, true) {
                self.lookups.push_back(*watched);
            }
        }
    }

    fn look_up(&mut self, now: Instant) -> Result<(), NetlinkError> {
        for _ in 0..LOOKUPS_PER_CALL {
            let Some(&watched) = self.lookups.front() else { break };
            if self.watches.contains_key(&watched) {
                let via = match watched {
                    (None, destination) => kernel::route(&mut self.netlink, destination)?,
                    (Some(ifindex), address) => Ok(Via { key: (ifindex, address), source: None }),
                };
                self.set_via(watched, via);
            }
            self.lookups.pop_front();
        }
        for _ in 0..LOOKUPS_PER_CALL {
            let Some(&key) = self.rereads.front() else { break };
            if self.next_hops.contains_key(&key) {
                let entry = kernel::neighbor(&mut self.netlink, key)?;
                self.update(key, entry, now);
            }
            self.rereads.pop_front();
        }
        Ok(())
    }

    fn set_via(&mut self, watched: Watched, via: Result<Via, Unresolved>) {
        let Some(watch) = self.watches.get_mut(&watched) else { return };
        watch.lookup_queued = false;
        let key = via.as_ref().ok().map(|via| via.key);
        let before = watch.via.replace(via);
        let before = before.and_then(Result::ok).map(|via| via.key);
        if before != key {
            if let Some(before) = before {
                self.leave(before, watched);
            }
            if let Some(key) = key {
                self.join(key, watched);
            }
        }
        self.queue_report(watched);
    }

    fn join(&mut self, key: Key, watched: Watched) {
        let rereads = &mut self.rereads;
        let hop = self.next_hops.entry(key).or_insert_with(|| {
            rereads.push_back(key);
            NextHop {
                mac: None,
                state: None,
                users: HashSet::new(),
                failures: 0,
                probed_at: None,
                probe_at: None,
            }
        });
        hop.users.insert(watched);
    }

    fn leave(&mut self, key: Key, watched: Watched) {
        let Some(hop) = self.next_hops.get_mut(&key) else { return };
        hop.users.remove(&watched);
        if hop.users.is_empty() {
            set_timer(&mut self.timers, hop, key, None);
            self.next_hops.remove(&key);
        }
    }

    /// Notes a neighbour's entry, or that it has none.
    fn update(&mut self, key: Key, entry: Option<Entry>, now: Instant) {
        use NeighbourState as S;
        let Some(hop) = self.next_hops.get_mut(&key) else { return };
        let before = (hop.mac, hop.state == Some(S::Failed), hop.state == Some(S::Noarp));
        // The kernel checks before it gives up; an entry that fails at once was deleted.
        let settled = matches!(hop.state, Some(S::Reachable | S::Stale | S::Delay | S::Permanent));
        let deleted = settled && entry.is_some_and(|entry| entry.state == S::Failed);
        hop.state = entry.filter(|_| !deleted).map(|entry| entry.state);
        let soon = hop.probed_at.map_or(now, |at| now.max(at + PROBE_GAP));
        if let Some(mac) = entry.and_then(|entry| entry.usable()) {
            hop.mac = Some(mac);
            hop.failures = 0;
        }
        let probe_at = match hop.state {
            Some(S::Permanent) => None,
            Some(S::Noarp) => {
                hop.mac = entry.and_then(|entry| entry.usable());
                None
            }
            Some(S::Reachable | S::Delay | S::Probe) => Some(now + REFRESH),
            Some(S::Incomplete) => Some(now + RESOLVE_WAIT),
            Some(S::Failed) => {
                hop.mac = None;
                hop.failures = hop.failures.saturating_add(1);
                let wait = PROBE_GAP * 2_u32.pow(hop.failures.min(5));
                Some(now + wait.min(REFRESH))
            }
            _ => Some(soon),
        };
        set_timer(&mut self.timers, hop, key, probe_at);
        if before != (hop.mac, hop.state == Some(S::Failed), hop.state == Some(S::Noarp)) {
            for watched in &hop.users {
                queue(&mut self.watches, &mut self.reports, *watched);
            }
        }
    }

    fn queue_lookup(&mut self, watched: Watched) {
        if let Some(watch) = self.watches.get_mut(&watched)
            && !std::mem::replace(&mut watch.lookup_queued, true)
        {
            self.lookups.push_back(watched);
        }
    }

    fn queue_report(&mut self, watched: Watched) {
        queue(&mut self.watches, &mut self.reports, watched);
    }

    /// The queued destinations whose state differs from what was told last.
    fn tell(&mut self) -> Vec<NeighborEvent> {
        let mut events = Vec::new();
        for _ in 0..EVENTS_PER_CALL {
            let Some(watched) = self.reports.pop_front() else { break };
            let Some(outcome) = self.current(watched) else { continue };
            let Some(watch) = self.watches.get_mut(&watched) else { continue };
            watch.report_queued = false;
            if watch.reported.as_ref() != Some(&outcome) {
                watch.reported = Some(outcome.clone());
                let (interface, destination) = watched;
                events.push(NeighborEvent { interface, destination, outcome });
            }
        }
        events
    }

    fn current(&self, watched: Watched) -> Option<Outcome> {
        let via = match self.watches.get(&watched)?.via.as_ref()? {
            Ok(via) => via,
            Err(why) => return Some(Outcome::Unresolved(why.clone())),
        };
        let (ifindex, next_hop) = via.key;
        let hop = self.next_hops.get(&via.key)?;
        Some(match (hop.mac, hop.state) {
            (Some(mac), _) => {
                Outcome::Resolved(Resolution { ifindex, next_hop, mac, prefsrc: via.source })
            }
            (None, Some(NeighbourState::Failed)) => {
                Outcome::Unresolved(Unresolved::NoAnswer { ifindex, next_hop })
            }
            (None, Some(NeighbourState::Noarp)) => {
                Outcome::Unresolved(Unresolved::NotEthernet { ifindex, next_hop })
            }
            (None, _) => Outcome::Unresolved(Unresolved::Resolving(next_hop)),
        })
    }
}

fn queue(watches: &mut HashMap<Watched, Watch>, reports: &mut VecDeque<Watched>, to: Watched) {
    if let Some(watch) = watches.get_mut(&to)
        && !std::mem::replace(&mut watch.report_queued, true)
    {
        reports.push_back(to);
    }
}

fn set_timer(
    timers: &mut BTreeSet<(Instant, Key)>,
    hop: &mut NextHop,
    key: Key,
    at: Option<Instant>,
) {
    if let Some(before) = hop.probe_at.take() {
        timers.remove(&(before, key));
    }
    hop.probe_at = at;
    timers.extend(at.map(|at| (at, key)));
}
