//! SWIM (Das et al., DSN 2002) as `foca` has it, without sockets and clocks: datagrams and time go
//! in, datagrams come out. What is checked here: a datagram is from the node that it says it is
//! from, that node is one of the cluster's, and nothing is believed of or sent to any other. It is
//! also from the port that control processes have: pods' packets leave with the node's address too,
//! and with other ports.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::num::{NonZeroU32, NonZeroUsize};
use std::time::{Duration, Instant};

use foca::{
    Codec, Config, Foca, Header, Member, Message, NoCustomBroadcast, Notification, PeriodicParams,
    PostcardCodec, State, Timer,
};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use serde::{Deserialize, Serialize};

use super::identity::{Duty, Identity};
use super::seal::{self, Refused};
use crate::validate::MembershipSettings;

/// Longest message, bytes: signed it fits the smallest MTU of IPv6 with its headers (RFC 8200 section 5).
const MAX_BYTES: usize = 1200;
const _: () = assert!(MAX_BYTES + seal::OVERHEAD <= 1280 - 40 - 8);
/// How often nodes of which nothing is heard are asked to answer.
const SEEK_EVERY: Duration = Duration::from_secs(1);
/// How many of them at a time: ten thousand are found in ten minutes by this alone; each answer
/// tells of dozens of others.
const SEEK: usize = 16;
/// How often what is new is told on, and to how many.
const GOSSIP_EVERY: Duration = Duration::from_millis(200);
const GOSSIP_TO: usize = 3;

/// What has come in and gone out, in datagrams.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Datagrams {
    /// Received and believed.
    pub received: u64,
    /// Sent.
    pub sent: u64,
    /// Not from a control process of a node of the cluster, or in another's name: ignored.
    pub unknown_sender: u64,
    /// Not to be understood: ignored.
    pub malformed: u64,
    /// Not signed with a key of ours, where there are keys: ignored.
    #[serde(default)]
    pub unauthenticated: u64,
    /// Signed, but too long ago by this node's clock, or from the future: ignored.
    #[serde(default)]
    pub stale: u64,
    /// Signed, but seen before, or overtaken by a later one: ignored.
    #[serde(default)]
    pub replayed: u64,
}

impl Datagrams {
    /// All that were ignored.
    #[must_use]
    pub const fn ignored(&self) -> u64 {
        self.unknown_sender + self.malformed + self.unauthenticated + self.stale + self.replayed
    }
}

/// Takes what `foca` wants done.
#[derive(Debug, Default)]
struct Wishes {
    sends: Vec<(IpAddr, Vec<u8>)>,
    timers: Vec<(Duration, Timer<Identity>)>,
    changed: bool,
}

impl foca::Runtime<Identity> for Wishes {
    fn notify(&mut self, _: Notification<'_, Identity>) {
        self.changed = true;
    }

    fn send_to(&mut self, to: Identity, data: &[u8]) {
        self.sends.push((to.address, data.to_vec()));
    }

    fn submit_after(&mut self, event: Timer<Identity>, after: Duration) {
        self.timers.push((after, event));
    }
}

/// One node's view of the others.
pub(super) struct Swim {
    foca: Foca<Identity, PostcardCodec, SmallRng, NoCustomBroadcast>,
    settings: MembershipSettings,
    wishes: Wishes,
    timers: BTreeMap<(Instant, u64), Timer<Identity>>,
    timer_count: u64,
    /// Addresses of the cluster's other nodes.
    known: BTreeSet<IpAddr>,
    /// Those that are asked to answer next, in turn.
    sought: VecDeque<IpAddr>,
    next_seek: Instant,
    out: Vec<(IpAddr, Vec<u8>)>,
    datagrams: Datagrams,
}

impl std::fmt::Debug for Swim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Swim").field("identity", self.foca.identity()).finish_non_exhaustive()
    }
}

/// `foca`'s own advice for a LAN of so many nodes, with our times.
fn config(settings: &MembershipSettings, nodes: usize) -> Config {
    let size = u32::try_from(nodes).ok().and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MIN);
    Config {
        probe_period: settings.probe_interval,
        probe_rtt: settings.probe_interval / 3,
        suspect_to_down_after: settings.suspicion,
        max_packet_size: NonZeroUsize::new(MAX_BYTES).unwrap_or(NonZeroUsize::MIN),
        periodic_gossip: Some(PeriodicParams {
            frequency: GOSSIP_EVERY,
            num_members: NonZeroUsize::new(GOSSIP_TO).unwrap_or(NonZeroUsize::MIN),
        }),
        // Those that are dead or unknown are sought here.
        periodic_announce_to_down_members: None,
        notify_down_members: true,
        ..Config::new_lan(size)
    }
}

impl Swim {
    /// A node that knows of no other. `seed` chooses whom it asks in which order.
    pub(super) fn new(
        identity: Identity,
        settings: MembershipSettings,
        seed: u64,
        now: Instant,
    ) -> Self {
        let rng = SmallRng::seed_from_u64(seed);
        Self {
            foca: Foca::new(identity, config(&settings, 1), rng, PostcardCodec),
            settings,
            wishes: Wishes::default(),
            timers: BTreeMap::new(),
            timer_count: 0,
            known: BTreeSet::new(),
            sought: VecDeque::new(),
            next_seek: now,
            out: Vec::new(),
            datagrams: Datagrams::default(),
        }
    }

    /// These are the addresses of the cluster's other nodes.
    pub(super) fn know(&mut self, mut known: BTreeSet<IpAddr>, now: Instant) {
        known.remove(&self.identity().address);
        if known == self.known {
            return;
        }
        let _ = self.foca.set_config(config(&self.settings, known.len() + 1));
        self.sought = known.iter().copied().collect();
        self.known = known;
        self.wishes.changed = true;
        self.next_seek = now;
    }

    pub(super) fn identity(&self) -> &Identity {
        self.foca.identity()
    }

    pub(super) const fn datagrams(&self) -> Datagrams {
        self.datagrams
    }

    /// The other nodes of the cluster that were heard of, and how they are.
    pub(super) fn members(&self) -> impl Iterator<Item = (&Identity, State)> {
        let members = self.foca.iter_membership_state();
        members
            .map(|member| (member.id(), member.state()))
            .filter(|(identity, _)| self.known.contains(&identity.address))
    }

    /// Is some other live node ready?
    pub(super) fn others_ready(&self) -> bool {
        self.members().any(|(identity, state)| state != State::Down && identity.duty == Duty::Ready)
    }

    /// Has anything happened to the members, or to the own identity, since last asked?
    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.wishes.changed)
    }

    /// What is to be sent, and to whom.
    pub(super) fn take_datagrams(&mut self) -> Vec<(IpAddr, Vec<u8>)> {
        std::mem::take(&mut self.out)
    }

    /// Tells the others of another duty.
    pub(super) fn set_duty(&mut self, duty: Duty, now: Instant) {
        if self.identity().duty == duty {
            return;
        }
        let identity = self.identity().with_duty(duty);
        let told = self.foca.change_identity(identity, &mut self.wishes);
        self.note(told);
        self.wishes.changed = true;
        // Whoever is asked answers to the new identity: with that this node is a member again.
        let active: Vec<Identity> =
            self.foca.iter_members().take(GOSSIP_TO).map(|member| member.id().clone()).collect();
        for member in active {
            let asked = self.foca.announce(member, &mut self.wishes);
            self.note(asked);
        }
        // What others were asked in the former name, they answer to that.
        self.next_seek = now;
        self.settle(now);
    }

    /// Says farewell: others need not find out.
    pub(super) fn leave(&mut self, now: Instant) {
        let left = self.foca.leave_cluster(&mut self.wishes);
        self.note(left);
        self.settle(now);
    }

    /// Is it from where the control process of a node of the cluster sends?
    pub(super) fn is_expected(&self, from: SocketAddr) -> bool {
        from.port() == self.settings.port && self.known.contains(&from.ip())
    }

    /// A datagram is not to be believed, for this reason.
    pub(super) fn refuse(&mut self, refused: Refused) {
        let counter = match refused {
            Refused::Unauthenticated => &mut self.datagrams.unauthenticated,
            Refused::Stale { .. } => &mut self.datagrams.stale,
            Refused::Replayed => &mut self.datagrams.replayed,
        };
        *counter += 1;
    }

    /// Takes a datagram that came from `from`.
    pub(super) fn receive(&mut self, from: SocketAddr, data: &[u8], now: Instant) {
        if !self.is_expected(from) {
            self.datagrams.unknown_sender += 1;
            return;
        }
        let Some((header, updates)) = read(data) else {
            self.datagrams.malformed += 1;
            return;
        };
        if header.src.address != from.ip() {
            self.datagrams.unknown_sender += 1;
            return;
        }
        let own = self.identity().address;
        let is_known = |member: &Member<Identity>| {
            member.id().address == own || self.known.contains(&member.id().address)
        };
        // A node that is not in the manifests yet is nobody to ask or to declare dead.
        let kept: Vec<&Member<Identity>> = updates.iter().filter(|m| is_known(m)).collect();
        let is_whole = kept.len() == updates.len();
        let rewritten = if is_whole { None } else { write(&header, &kept) };
        let data = rewritten.as_deref().unwrap_or(data);
        match self.foca.handle_data(data, &mut self.wishes) {
            Ok(()) => self.datagrams.received += 1,
            Err(error) => {
                tracing::debug!(%from, %error, "a membership message is ignored");
                self.datagrams.malformed += 1;
            }
        }
        self.settle(now);
    }

    /// Does what is due.
    pub(super) fn poll(&mut self, now: Instant) {
        while let Some(entry) = self.timers.first_entry().filter(|entry| entry.key().0 <= now) {
            let event = entry.remove();
            let done = self.foca.handle_timer(event, &mut self.wishes);
            self.note(done);
            self.settle(now);
        }
        if now >= self.next_seek {
            self.next_seek = now + SEEK_EVERY;
            self.seek();
            self.settle(now);
        }
    }

    /// When [`Self::poll`] has something to do.
    pub(super) fn deadline(&self) -> Instant {
        let timer = self.timers.keys().next().map(|(at, _)| *at);
        timer.map_or(self.next_seek, |at| at.min(self.next_seek))
    }

    /// Asks some of those that are not known to live.
    fn seek(&mut self) {
        let active: BTreeSet<IpAddr> =
            self.foca.iter_members().map(|member| member.id().address).collect();
        let mut asked = 0;
        for _ in 0..self.sought.len() {
            if asked == SEEK {
                break;
            }
            let Some(address) = self.sought.pop_front() else { break };
            self.sought.push_back(address);
            if !active.contains(&address) {
                asked += 1;
                let done = self.foca.announce(Identity::unknown(address), &mut self.wishes);
                self.note(done);
            }
        }
    }

    fn note(&self, done: Result<(), foca::Error>) {
        if let Err(error) = done {
            tracing::debug!(%error, "membership");
        }
    }

    /// Takes over what `foca` wants done.
    fn settle(&mut self, now: Instant) {
        for (after, event) in self.wishes.timers.drain(..) {
            self.timer_count += 1;
            self.timers.insert((now + after, self.timer_count), event);
        }
        for (to, data) in self.wishes.sends.drain(..) {
            if self.known.contains(&to) {
                self.datagrams.sent += 1;
                self.out.push((to, data));
            }
        }
    }
}

/// The parts of a datagram: none when it is malformed. No message of ours has anything behind the
/// updates.
fn read(mut data: &[u8]) -> Option<(Header<Identity>, Vec<Member<Identity>>)> {
    if data.len() > MAX_BYTES {
        return None;
    }
    let header = PostcardCodec.decode_header(&mut data).ok()?;
    let mut updates = Vec::new();
    if let Some((count, rest)) = data.split_first_chunk() {
        data = rest;
        for _ in 0..u16::from_be_bytes(*count) {
            updates.push(PostcardCodec.decode_member(&mut data).ok()?);
        }
    }
    (data.is_empty() && header.message != Message::Broadcast).then_some((header, updates))
}

fn write(header: &Header<Identity>, updates: &[&Member<Identity>]) -> Option<Vec<u8>> {
    let mut data = Vec::with_capacity(MAX_BYTES);
    PostcardCodec.encode_header(header, &mut data).ok()?;
    if !updates.is_empty() {
        data.extend(u16::try_from(updates.len()).ok()?.to_be_bytes());
    }
    for member in updates {
        PostcardCodec.encode_member(member, &mut data).ok()?;
    }
    Some(data)
}

#[cfg(test)]
#[path = "swim_tests.rs"]
mod tests;
