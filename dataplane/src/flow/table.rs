//! One worker's flows of one family.
//!
//! Looking up a vector of packets is three passes, so that memory is waited for once and not once for
//! each packet: [`FlowTable::prefetch`] for all, [`FlowTable::probe`] for all, then
//! [`FlowTable::confirm`], with the half at hand.

use bytemuck::{AnyBitPattern, Zeroable};
use thiserror::Error;

use super::expiry::Evictions;
use super::half::{Half, Rewrite, Way};
use super::index::{Index, MAX_HALVES};
use super::past::Past;
use super::tcp_state::FlowState;
use super::timeouts::Timeouts;
use super::{Direction, FlowId, HalfId};
use crate::packet::drop::DropReason;
use crate::packet::flow_key::{Address, FlowHash, FlowKey, Transport};
use crate::packet::prefetch::{prefetch, prefetch_whole};
use crate::packet::region::{Region, RegionError};

/// Most flows of one table.
pub const MAX_CAPACITY: u32 = MAX_HALVES / 2;

/// First bytes of a table: "overlane" and that it is flows.
const MAGIC: u64 = u64::from_le_bytes(*b"ovl-flow");
/// To be raised whenever what stands in a header, a half or a bucket, or how a key is hashed, changes.
const VERSION: u32 = 4;

/// What a later process needs to make sense of the other regions, and what changes with them.
#[derive(Debug, Clone, Copy, AnyBitPattern)]
#[repr(C)]
pub(super) struct Header {
    magic: u64,
    version: u32,
    half_bytes: u32,
    capacity: u32,
    buckets: u32,
    seed: u64,
    /// Flows there are.
    len: u32,
    /// Entries below have been used at least once; those from here on never.
    pub(super) used: u32,
    /// The free entry used last, plus 1; 0: none. Its forward half says which was before.
    free: u32,
    /// Where expiry goes on.
    pub(super) cursor: u32,
    /// Entries that expiry is to look at whatever their deadlines say.
    pub(super) distrusted: u32,
    reserved: [u32; 3],
}

/// A flow to be installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opening<A> {
    /// What the opener's packets arrive with.
    pub key: FlowKey<A>,
    /// What they leave with. The answers arrive with the reverse of it, and leave with the reverse of
    /// `key`.
    pub leaving_as: FlowKey<A>,
    /// Where the opener's packets go.
    pub forward: Way,
    /// Where the answers go.
    pub reverse: Way,
    /// A TCP connection that is taken over in its middle: there will be no SYN.
    pub adopted: bool,
}

/// Why a flow was not installed. Nothing has changed then, but for flows whose time was over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum InsertError {
    /// Packets with the opener's key already have a flow: an earlier packet of the same vector began
    /// it, perhaps.
    #[error("there is such a flow already")]
    Exists(HalfId),
    /// Its answers could not be told from another flow's.
    #[error("the answers would be taken for those of another flow")]
    Taken(HalfId),
    /// Its answers could not be told from its own packets.
    #[error("the answers would be taken for the flow's own packets")]
    OwnAnswer,
    /// No entry is free, and none of those nearby may be thrown out. The last 5 percent are for new
    /// TCP connections only.
    #[error("the flow table is full")]
    Full,
}

/// Why a flow has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Gone {
    /// Its time was over.
    Expired,
    /// It made room for another.
    Evicted,
    /// Somebody asked for it.
    Removed,
}

/// A flow that has gone.
#[derive(Debug, Clone, Copy)]
pub struct Removed<A> {
    /// The number that it had.
    pub flow: FlowId,
    /// Its opener's direction.
    pub forward: Half<A>,
    /// Its answers'.
    pub reverse: Half<A>,
    /// How far it was.
    pub state: FlowState,
    /// Why.
    pub why: Gone,
}

impl<A: Address> Removed<A> {
    /// Tick of its last packet.
    #[must_use]
    pub fn last_seen(&self) -> u32 {
        self.forward.last_seen().max(self.reverse.last_seen())
    }
}

/// What [`FlowTable::probe`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Probe(u32);

impl Probe {
    /// Is there a half with the hash?
    #[inline]
    #[must_use]
    pub const fn is_hit(self) -> bool {
        self.0 != 0
    }

    /// The half that has the hash, if there is one.
    #[inline]
    #[must_use]
    pub const fn half(self) -> Option<HalfId> {
        HalfId::from_number(self.0)
    }
}

/// The flows of one family in one worker.
#[derive(Debug)]
pub struct FlowTable<A: Address> {
    pub(super) header: Region<Header>,
    pub(super) index: Index,
    pub(super) halves: Region<Half<A>>,
    /// For each flow a tick before which it cannot expire; 0: no flow.
    pub(super) deadlines: Region<u32>,
    /// The tick at which each flow began.
    began: Region<u32>,
    hash: FlowHash,
    /// Free entries that only TCP connections may take.
    reserve: u32,
    pub(super) timeouts: Timeouts,
    pub(super) evictions: Evictions,
    pub(super) past: Past,
}

/// Of IPv4.
pub type FlowTable4 = FlowTable<u32>;
/// Of IPv6.
pub type FlowTable6 = FlowTable<u128>;

impl<A: Address> FlowTable<A> {
    /// A table for `capacity` flows, 1 to [`MAX_CAPACITY`] of them. `seed` is to be random: whoever
    /// knows it can choose flows that get in each other's way.
    ///
    /// The memory is reserved, not yet taken: see [`FlowTable::touch`].
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn new(capacity: u32, seed: u64) -> Result<Self, RegionError> {
        let capacity = capacity.clamp(1, MAX_CAPACITY);
        let index = Index::new(capacity * 2)?;
        let mut header = Region::new(1)?;
        header[0] = Header {
            magic: MAGIC,
            version: VERSION,
            half_bytes: u32::try_from(size_of::<Half<A>>()).unwrap_or(0),
            capacity,
            buckets: index.buckets(),
            seed,
            ..Header::zeroed()
        };
        Ok(Self {
            header,
            index,
            halves: Region::new(capacity as usize * 2)?,
            deadlines: Region::new(capacity as usize)?,
            began: Region::new(capacity as usize)?,
            hash: FlowHash::new(seed),
            reserve: capacity / 20,
            timeouts: Timeouts::default(),
            evictions: Evictions::default(),
            past: Past::new()?,
        })
    }

    /// Takes all the memory now, so that no packet waits for a page.
    pub fn touch(&mut self) {
        self.index.touch();
        self.halves.touch();
        self.deadlines.touch();
        self.began.touch();
    }

    /// Bytes of memory that the table takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let times = self.deadlines.bytes() + self.began.bytes();
        self.header.bytes() + self.index.bytes() + self.halves.bytes() + times
    }

    /// Did the system accept that index and halves have huge pages?
    #[must_use]
    pub fn huge_pages_accepted(&self) -> bool {
        self.index.huge_pages_accepted() && self.halves.huge_pages_accepted()
    }

    /// Other timeouts, for flows that exist as well: the next round of expiry looks at all of them.
    pub fn set_timeouts(&mut self, timeouts: Timeouts) {
        if timeouts != self.timeouts {
            self.timeouts = timeouts;
            self.header[0].distrusted = self.header[0].used;
        }
    }

    /// Flows there are.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.header[0].len
    }

    /// Is there none?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Flows there can be.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.header[0].capacity
    }

    /// How many flows made room for others, by what they were.
    #[must_use]
    pub fn evictions(&self) -> Evictions {
        self.evictions
    }

    /// What the flows that have gone had carried.
    #[must_use]
    pub fn past(&self) -> &Past {
        &self.past
    }

    /// A packet opened no flow, for a reason that is the service's whose flows have this tag.
    #[cold]
    pub fn refuse(&mut self, tag: u32, reason: DropReason) {
        self.past.refuse(tag, reason);
    }

    /// The hash of a key in this table.
    #[inline]
    #[must_use]
    pub fn hash(&self, key: &FlowKey<A>) -> u32 {
        self.hash.of(key)
    }

    /// First pass: asks for the line that [`FlowTable::probe`] reads.
    #[inline]
    pub fn prefetch(&self, hash: u32) {
        self.index.prefetch(hash);
    }

    /// Second pass: looks for the hash, and asks for the half.
    #[inline(always)]
    #[must_use]
    pub fn probe(&self, hash: u32) -> Probe {
        let found = self.index.probe(hash);
        if let Some(half) = found.and_then(|half| self.halves.get(half.place())) {
            prefetch(half);
            if size_of::<Half<A>>() > 64 {
                prefetch((&raw const *half).cast::<u8>().wrapping_add(64));
            }
        }
        Probe(found.map_or(0, HalfId::to_number))
    }

    /// Third pass: compares the key.
    #[inline]
    #[must_use]
    pub fn confirm(&self, probe: Probe, hash: u32, key: &FlowKey<A>) -> Option<HalfId> {
        let half = probe.half()?;
        if self.halves.get(half.place()).is_some_and(|found| found.is_for(key)) {
            Some(half)
        } else {
            self.find(hash, key)
        }
    }

    /// All three passes for one packet. `hash` is that of the key.
    #[inline(always)]
    #[must_use]
    pub fn find(&self, hash: u32, key: &FlowKey<A>) -> Option<HalfId> {
        self.index
            .find(hash, |half| self.halves.get(half.place()).is_some_and(|found| found.is_for(key)))
    }

    /// The half of a probe, if packets with this key belong to it. [`FlowTable::confirm`] looks on where
    /// another key has the same hash.
    #[inline(always)]
    #[must_use]
    pub fn likely(&mut self, probe: Probe, key: &FlowKey<A>) -> Option<(HalfId, &mut Half<A>)> {
        let half = probe.half()?;
        let found = self.halves.get_mut(half.place()).filter(|found| found.is_for(key))?;
        Some((half, found))
    }

    /// A half that was found.
    ///
    /// # Panics
    /// For a number that is not of this table.
    #[inline]
    #[must_use]
    pub fn half(&self, half: HalfId) -> &Half<A> {
        &self.halves[half.place()]
    }

    /// A half that was found, to [`Half::record`] a packet.
    ///
    /// # Panics
    /// For a number that is not of this table.
    #[inline]
    #[must_use]
    pub fn half_mut(&mut self, half: HalfId) -> &mut Half<A> {
        &mut self.halves[half.place()]
    }

    /// Both halves of a flow, the opener's first; none when there is no such flow.
    #[must_use]
    pub fn flow(&self, flow: FlowId) -> Option<(&Half<A>, &Half<A>)> {
        self.deadlines.get(flow.0 as usize).filter(|deadline| **deadline != 0)?;
        let forward = HalfId::new(flow, Direction::Forward);
        Some((self.halves.get(forward.place())?, self.halves.get(forward.other().place())?))
    }

    /// How far a flow is; none when there is no such flow.
    #[must_use]
    pub fn state(&self, flow: FlowId) -> Option<FlowState> {
        self.flow(flow).map(|(forward, reverse)| FlowState::of(forward, reverse))
    }

    /// Tick at which a flow expires when nothing more comes; none when there is no such flow.
    #[must_use]
    pub fn expires_at(&self, flow: FlowId) -> Option<u32> {
        let (forward, reverse) = self.flow(flow)?;
        Some(self.deadline(forward, reverse, FlowState::of(forward, reverse)))
    }

    /// Installs both directions of a flow, or neither. `hash` is that of the opener's key. No packet is
    /// recorded yet.
    ///
    /// In a full table it throws out one of the flows nearby: one whose time is over; else a TCP
    /// connection without an answer; another flow without an answer; a closed connection; but none that
    /// had a packet in this tick, and never one that is established or answered. `gone` is told.
    ///
    /// # Errors
    /// See [`InsertError`].
    pub fn insert(
        &mut self,
        hash: u32,
        opening: &Opening<A>,
        now: u32,
        gone: &mut dyn FnMut(&Removed<A>),
    ) -> Result<FlowId, InsertError> {
        self.insert_answering_as(hash, opening, &opening.key.reversed(), now, gone)
    }

    /// As [`FlowTable::insert`]; the answers leave with `answers_as`.
    ///
    /// # Errors
    /// See [`InsertError`].
    pub fn insert_answering_as(
        &mut self,
        hash: u32,
        opening: &Opening<A>,
        answers_as: &FlowKey<A>,
        now: u32,
        gone: &mut dyn FnMut(&Removed<A>),
    ) -> Result<FlowId, InsertError> {
        let there = Rewrite::between(&opening.key, &opening.leaving_as);
        let answer = there.leaving_as.reversed();
        let back = Rewrite::between(&answer, answers_as);
        if answer == opening.key {
            return Err(InsertError::OwnAnswer);
        }
        let answer_hash = self.hash(&answer);
        if let Some(half) = self.find_living(hash, &opening.key, now, gone) {
            return Err(InsertError::Exists(half));
        }
        if let Some(half) = self.find_living(answer_hash, &answer, now, gone) {
            return Err(InsertError::Taken(half));
        }
        let for_all = opening.key.transport() != Transport::Tcp || opening.adopted;
        let free = self.capacity() - self.len();
        if free <= if for_all { self.reserve } else { 0 }
            && !self.evict(&[hash, answer_hash], now, gone)
        {
            return Err(InsertError::Full);
        }
        let flow = self.take_entry().ok_or(InsertError::Full)?;
        let forward = HalfId::new(flow, Direction::Forward);
        if !self.index_half(hash, forward, now, gone) {
            self.give_entry_back(flow);
            return Err(InsertError::Full);
        }
        if !self.index_half(answer_hash, forward.other(), now, gone) {
            self.index.remove(hash, forward);
            self.give_entry_back(flow);
            return Err(InsertError::Full);
        }
        let mut first = Half::new(&opening.key, &there, &opening.forward, now);
        if opening.adopted {
            first.adopt();
        }
        self.halves[forward.place()] = first;
        self.halves[forward.other().place()] = Half::new(&answer, &back, &opening.reverse, now);
        self.deadlines[flow.0 as usize] = now.saturating_add(self.timeouts.revisit(&first)).max(1);
        self.began[flow.0 as usize] = now;
        self.header[0].len += 1;
        Ok(flow)
    }

    /// As [`FlowTable::find`], but a flow whose time is over is removed instead. Mostly there is none.
    #[inline(always)]
    fn find_living(
        &mut self,
        hash: u32,
        key: &FlowKey<A>,
        now: u32,
        gone: &mut dyn FnMut(&Removed<A>),
    ) -> Option<HalfId> {
        let half = self.find(hash, key)?;
        self.keep_living(half, now, gone)
    }

    #[cold]
    #[inline(never)]
    fn keep_living(
        &mut self,
        half: HalfId,
        now: u32,
        gone: &mut dyn FnMut(&Removed<A>),
    ) -> Option<HalfId> {
        if self.expires_at(half.flow())? > now {
            return Some(half);
        }
        if let Some(removed) = self.take(half.flow(), Gone::Expired) {
            gone(&removed);
        }
        None
    }

    /// Adds a half to the index, at the cost of another flow when there is no other way.
    fn index_half(
        &mut self,
        hash: u32,
        half: HalfId,
        now: u32,
        gone: &mut dyn FnMut(&Removed<A>),
    ) -> bool {
        self.index.insert(hash, half)
            || self.evict(&[hash], now, gone) && self.index.insert(hash, half)
    }

    fn take_entry(&mut self) -> Option<FlowId> {
        let header = &mut self.header[0];
        if let Some(flow) = header.free.checked_sub(1).map(FlowId) {
            let forward = HalfId::new(flow, Direction::Forward);
            header.free = self.halves[forward.place()].tag();
            self.prefetch_free();
            return Some(flow);
        }
        let flow = FlowId(header.used);
        (header.used < header.capacity).then(|| {
            header.used += 1;
            flow
        })
    }

    /// Asks for the entry that the next flow will take, which is a random one.
    #[inline]
    fn prefetch_free(&self) {
        let Some(flow) = self.header[0].free.checked_sub(1).map(FlowId) else { return };
        let forward = HalfId::new(flow, Direction::Forward);
        for half in
            self.halves.get(forward.place()..).into_iter().flat_map(|rest| rest.iter().take(2))
        {
            prefetch_whole(half);
        }
    }

    fn give_entry_back(&mut self, flow: FlowId) {
        let header = &mut self.header[0];
        let forward = HalfId::new(flow, Direction::Forward);
        // Nobody who still has the number finds an old key there.
        self.halves[forward.place()] = Half::free(header.free);
        self.halves[forward.other().place()] = Half::free(0);
        header.free = flow.0 + 1;
    }

    /// Removes a flow; none when there is no such flow.
    pub fn remove(&mut self, flow: FlowId) -> Option<Removed<A>> {
        self.take(flow, Gone::Removed)
    }

    pub(super) fn take(&mut self, flow: FlowId, why: Gone) -> Option<Removed<A>> {
        let (forward, reverse) = self.flow(flow).map(|(forward, reverse)| (*forward, *reverse))?;
        let half = HalfId::new(flow, Direction::Forward);
        self.index.remove(self.hash(&forward.key()), half);
        self.index.remove(self.hash(&reverse.key()), half.other());
        self.deadlines[flow.0 as usize] = 0;
        self.header[0].len -= 1;
        self.give_entry_back(flow);
        self.past.add(&forward, &reverse);
        let state = FlowState::of(&forward, &reverse);
        Some(Removed { flow, forward, reverse, state, why })
    }

    /// Begins a flow again where it is: nothing of its connection has been seen. See
    /// [`FlowState::reopens`].
    pub fn restart(&mut self, flow: FlowId, now: u32) {
        if self.flow(flow).is_some() {
            let forward = HalfId::new(flow, Direction::Forward);
            self.halves[forward.place()].forget(now);
            self.halves[forward.other().place()].forget(now);
            self.began[flow.0 as usize] = now;
        }
    }

    /// The tick at which a flow began.
    #[must_use]
    pub fn began_at(&self, flow: FlowId) -> Option<u32> {
        self.flow(flow)?;
        self.began.get(flow.0 as usize).copied()
    }

    /// All flows.
    pub fn iter(&self) -> impl Iterator<Item = (FlowId, &Half<A>, &Half<A>)> + '_ {
        self.iter_from(FlowId(0))
    }

    /// The flows from a number on, in order of their numbers: a listing can be made in pieces, with
    /// packets between. Flows that come and go meanwhile may be in it or not.
    pub fn iter_from(
        &self,
        start: FlowId,
    ) -> impl Iterator<Item = (FlowId, &Half<A>, &Half<A>)> + '_ {
        (start.0..self.header[0].used).filter_map(|number| {
            let flow = FlowId(number);
            self.flow(flow).map(|(forward, reverse)| (flow, forward, reverse))
        })
    }

    /// Shows `each` the flows among `budget` entries from number `start` on. Returns where to go on;
    /// none when it has seen them all.
    pub fn look_through(
        &self,
        start: FlowId,
        budget: u32,
        mut each: impl FnMut(FlowId, &Half<A>, &Half<A>),
    ) -> Option<FlowId> {
        let end = start.0.saturating_add(budget).min(self.header[0].used);
        for flow in (start.0..end).map(FlowId) {
            if let Some((forward, reverse)) = self.flow(flow) {
                each(flow, forward, reverse);
            }
        }
        (end < self.header[0].used).then_some(FlowId(end))
    }

    /// Removes the flows that `is_meant`, looking at `budget` entries from number `start` on. Returns
    /// where to go on; none when it has seen them all. `gone` is told of each.
    pub fn flush(
        &mut self,
        start: FlowId,
        budget: u32,
        mut is_meant: impl FnMut(FlowId, &Half<A>, &Half<A>) -> bool,
        gone: &mut dyn FnMut(&Removed<A>),
    ) -> Option<FlowId> {
        let end = start.0.saturating_add(budget).min(self.header[0].used);
        for flow in (start.0..end).map(FlowId) {
            let meant =
                self.flow(flow).is_some_and(|(forward, reverse)| is_meant(flow, forward, reverse));
            if meant && let Some(removed) = self.take(flow, Gone::Removed) {
                gone(&removed);
            }
        }
        (end < self.header[0].used).then_some(FlowId(end))
    }
}

#[cfg(test)]
#[path = "table_model_tests.rs"]
mod model_tests;
#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
