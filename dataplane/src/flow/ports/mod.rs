//! External ports for source NAT: one worker's, out of the blocks that it owns.
//!
//! A port may serve any number of flows, as long as no two have the same remote: the key of the answers
//! must be unique, and the flow table has the last word on that. What is here is how to find a free
//! port without asking for all of them:
//!
//! 1. the pod's own port, when this worker owns it (RFC 6056; remotes and logs like it);
//! 2. random ones, [`FEW`] of them: enough as long as half of the ports are free towards the remote;
//! 3. from then on, ports that are not known to be taken: the remote gets a bitmap (`pressure.rs`), which
//!    finds the last free port as well;
//! 4. ports of a block that nobody owns yet.
//!
//! ICMP identifiers are ports like others (RFC 5508 section 3.1). Nothing here is for protocols without
//! ports.

mod cooldown;
mod foresight;
mod pressure;
mod quota;

use std::sync::Arc;

use overlane_api::WorkerId;
use thiserror::Error;

pub use cooldown::Ending;
use cooldown::{Cooldown, Cooling};
pub use foresight::Foreseen;
use pressure::{Bitmap, Place, Pressure, bit, next_port};
use quota::Quota;

use super::random::{Random, below};
use super::table::Removed;
use super::tcp_state::FlowState;
use super::timeouts::ticks;
use crate::packet::blocks::{BLOCK_PORTS, BLOCKS, Block, BlockTable, FIRST_PORT, is_usable};
use crate::packet::flow_key::{Address, FlowKey};
use crate::packet::region::RegionError;

/// Random ports that are tried for a remote of which nothing is known.
const FEW: u32 = 8;
/// Ports that are tried at most for one flow. Only reached by a remote that was full already when its
/// bitmap was begun; the next flow goes on from there.
const MOST: u32 = 1024;
/// Ports known to be taken that are looked at again before a remote is given up.
const AUDIT: u32 = 8;
/// Blocks claimed at once.
const CLAIM: u32 = 4;
/// Bindings that are let go at a time when their cooldown is over.
const COOL: u32 = 256;

/// Number of an external address in its allocator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PoolId(u16);

/// The other end of a flow. Its port is 0 for ICMP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Remote<A> {
    /// Its address.
    pub address: A,
    /// Its port, host order.
    pub port: u16,
    /// Number in the IP header.
    pub protocol: u8,
}

impl<A: Address> Remote<A> {
    /// The key of its packets to an external address and port.
    #[inline]
    #[must_use]
    pub const fn answer(&self, external: A, external_port: u16) -> FlowKey<A> {
        FlowKey {
            source: self.address,
            destination: external,
            source_port: self.port,
            destination_port: external_port,
            protocol: self.protocol,
        }
    }

    const fn of(answer: &FlowKey<A>) -> Self {
        Self { address: answer.source, port: answer.source_port, protocol: answer.protocol }
    }
}

/// Why there is no port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum AllocateError {
    /// Every port that this worker owns or can claim is taken towards the remote, or so many are that
    /// a free one was not found within reason.
    #[error("no external port is left for the remote")]
    Exhausted,
    /// The address is not in use for new flows.
    #[error("the external address is not in use")]
    NoAddress,
}

impl Ending {
    /// How the connection of a flow that has gone had ended.
    #[must_use]
    pub const fn of_state(state: FlowState) -> Self {
        match state {
            FlowState::Closing => Self::Fin,
            FlowState::Reset => Self::Rst,
            _ => Self::Quiet,
        }
    }
}

/// Ports of one address.
#[derive(Debug)]
struct Pool<A> {
    address: A,
    table: Arc<BlockTable>,
    /// No new flows.
    retired: bool,
    /// Ports that may be given.
    owned: Box<Bitmap>,
    /// Of those, for a random one.
    blocks: Vec<Block>,
    /// For each block the bindings of its ports, cooling ones included.
    in_use: Box<[u32; BLOCKS]>,
    status: PoolStatus,
}

/// How full an address is, in one worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PoolStatus {
    /// Ports that the worker owns.
    pub owned: u32,
    /// Flows that have one; more than ports, as one port serves many remotes.
    pub bindings: u64,
    /// Flows that got none.
    pub exhausted: u64,
    /// Flows whose pod had its most.
    pub pod_limited: u64,
    /// How many tries a flow took: entry `n` counts those of 2^(n-1)+1 to 2^n tries.
    pub tries: [u64; 12],
}

impl<A: Address> Pool<A> {
    fn owns(&self, port: u16) -> bool {
        self.owned[Block::of(port).number()] & bit(port) != 0
    }

    /// Blocks that a worker keeps without needing them: all when it is the only one; else half of them
    /// are divided, and the other half is for who needs it. A few as long as it does not know.
    fn share(&self, workers: u32) -> u32 {
        let range = self.table.range();
        let first = range.first().max(FIRST_PORT) / BLOCK_PORTS;
        let all = (range.last() / BLOCK_PORTS + 1).saturating_sub(first);
        match workers {
            0 => CLAIM,
            1 => u32::from(all),
            _ => (u32::from(all) / 2 / workers).max(1),
        }
    }

    /// Some port, or one near that is owned.
    fn random_port(&self, random: &mut Random) -> u16 {
        self.port_of(random.number())
    }

    /// The port that a random number stands for.
    fn port_of(&self, number: u64) -> u16 {
        let count = u32::try_from(self.blocks.len()).unwrap_or(0);
        let number = below(number, count * 64);
        let block = self.blocks.get(number as usize / 64);
        block.map_or(0, |block| block.first_port() + u16::try_from(number % 64).unwrap_or(0))
    }

    fn claim(&mut self, worker: WorkerId, count: u32, random: &mut Random) -> u32 {
        self.claim_from(worker, random.below(1 << 10) as usize, count)
    }

    /// Takes the first free blocks from number `start` on; says how many there were.
    fn claim_from(&mut self, worker: WorkerId, start: usize, count: u32) -> u32 {
        let Self { table, owned, blocks, status, .. } = self;
        let (range, mut taken) = (table.range(), 0);
        table.claim_some(worker, start, count, |block| {
            owned[block.number()] = block.usable(range);
            status.owned += block.usable(range).count_ones();
            blocks.push(block);
            taken += 1;
        });
        taken
    }

    /// Takes the block of a port that a pod would like to keep, if nobody has it.
    fn claim_for(&mut self, worker: WorkerId, port: u16) {
        if is_usable(port, self.table.range()) && self.table.owner(port).is_none() {
            self.claim_from(worker, Block::of(port).number(), 1);
        }
    }
}

/// One try after the other for one flow.
struct Attempt<'a, A> {
    address: A,
    remote: &'a Remote<A>,
    cooldown: &'a Cooldown<A>,
    is_free: &'a mut dyn FnMut(&FlowKey<A>) -> bool,
    tries: u32,
}

impl<A: Address> Attempt<'_, A> {
    fn takes(&mut self, port: u16) -> bool {
        self.tries += 1;
        let answer = self.remote.answer(self.address, port);
        !self.cooldown.has(&answer) && (self.is_free)(&answer)
    }
}

/// The external ports of one worker and family.
#[derive(Debug)]
pub struct PortAllocator<A: Address> {
    worker: WorkerId,
    pools: Vec<Pool<A>>,
    pressure: Pressure<A>,
    cooldown: Cooldown<A>,
    quota: Quota<A>,
    random: Random,
    fin_cooldown: u32,
    rst_cooldown: u32,
    /// 0: not known.
    workers: u32,
    maintained_at: u32,
}

impl<A: Address> PortAllocator<A> {
    /// An allocator without addresses. `key` is to be random and secret.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn new(worker: WorkerId, key: [u64; 2]) -> Result<Self, RegionError> {
        let settings = overlane_api::SnatSettings::default();
        let mut random = Random::new(key);
        Ok(Self {
            worker,
            pools: Vec::new(),
            pressure: Pressure::new()?,
            cooldown: Cooldown::new(random.number()),
            quota: Quota::new(),
            random,
            fin_cooldown: ticks(settings.fin_cooldown),
            rst_cooldown: ticks(settings.rst_cooldown),
            workers: 0,
            maintained_at: 0,
        })
    }

    /// Says how many workers share the addresses, which decides about this one's share of the blocks.
    pub fn set_workers(&mut self, workers: u32) {
        self.workers = workers;
    }

    /// Once a second, however often it is called: claims what is missing of this worker's share of each
    /// address, gives back what it has beyond that and no flow uses, and lets ports go whose cooldown is
    /// over. Without it a worker keeps for ever what it once needed, and others may find nothing left.
    pub fn maintain(&mut self, now: u32) {
        if now < self.maintained_at.saturating_add(ticks(1)) && self.maintained_at > 0 {
            return;
        }
        self.maintained_at = now.max(1);
        self.cool(now, COOL);
        let pools = u16::try_from(self.pools.len()).unwrap_or(u16::MAX);
        for (number, pool) in (0..pools).map(PoolId).enumerate() {
            let Some(of) = self.pools.get(number) else { return };
            of.table.note_bindings(self.worker, of.status.bindings);
            let share = if of.retired { 0 } else { of.share(self.workers) };
            let owned = u32::try_from(of.blocks.len()).unwrap_or(u32::MAX);
            if owned < share {
                self.claim(pool, share - owned);
            } else {
                self.give_back(pool, share as usize);
            }
        }
    }

    /// How long, in seconds, a port is kept from the same remote after both FINs and after a RST. For
    /// connections that end from now on.
    pub fn set_cooldowns(&mut self, fin_s: u32, rst_s: u32) {
        self.fin_cooldown = ticks(fin_s);
        self.rst_cooldown = ticks(rst_s);
    }

    /// Most flows with a port that one pod may have at a time; none: no limit. `holders` are the pods of
    /// all flows that have one.
    pub fn set_pod_limit(&mut self, limit: Option<u32>, holders: impl Iterator<Item = A>) {
        self.quota.set(limit, holders);
    }

    /// May `pod` have a port for another flow? If not, it is counted.
    #[inline]
    pub fn may_take(&mut self, pool: PoolId, pod: A) -> bool {
        let is_reached = self.quota.is_reached(pod);
        if is_reached && let Some(pool) = self.pools.get_mut(usize::from(pool.0)) {
            pool.status.pod_limited += 1;
        }
        !is_reached
    }

    /// `pod` got one, until [`PortAllocator::forget`] or [`PortAllocator::not_installed`].
    #[inline]
    pub fn note_pod(&mut self, pod: A) {
        self.quota.take(pod);
    }

    /// Takes back what a flow of `pod` got that was not installed; its answers would have had this key.
    pub fn not_installed(&mut self, pod: A, answer: &FlowKey<A>, now: u32) {
        self.quota.give(pod);
        self.release(answer, Ending::Quiet, now, now);
    }

    /// Takes an address into use. The number of one that was in use before is the same again, as long
    /// as its table is. Not for the packet path: allocates.
    pub fn add_address(&mut self, address: A, table: &Arc<BlockTable>) -> PoolId {
        let known = self.pools.iter().position(|pool| pool.address == address);
        let place = known.unwrap_or_else(|| {
            self.pools.push(Pool {
                address,
                table: Arc::clone(table),
                retired: false,
                owned: Box::new([0; BLOCKS]),
                blocks: Vec::with_capacity(BLOCKS),
                in_use: Box::new([0; BLOCKS]),
                status: PoolStatus::default(),
            });
            self.pools.len() - 1
        });
        let number = PoolId(u16::try_from(place).unwrap_or(u16::MAX));
        let pool = &mut self.pools[place];
        pool.retired = false;
        if !Arc::ptr_eq(&pool.table, table) {
            // Other ports. What was given of the old ones stays with its flows until they end.
            for block in pool.blocks.drain(..) {
                pool.table.release(self.worker, block);
            }
            pool.owned.fill(0);
            pool.in_use.fill(0);
            pool.status.owned = 0;
            pool.table = Arc::clone(table);
            self.pressure.forget_pool(number);
        }
        number
    }

    /// Gives no more ports of an address. Its flows go on; its blocks are given back as they end, by
    /// [`PortAllocator::give_back`].
    pub fn retire_address(&mut self, pool: PoolId) {
        if let Some(pool) = self.pools.get_mut(usize::from(pool.0)) {
            pool.retired = true;
        }
    }

    /// The number of an address that is in use.
    #[must_use]
    pub fn pool(&self, address: A) -> Option<PoolId> {
        let place = self.pools.iter().position(|pool| pool.address == address && !pool.retired)?;
        u16::try_from(place).ok().map(PoolId)
    }

    /// Claims up to `count` blocks that nobody owns; returns how many it got. A worker is given its
    /// share like this; what it needs beyond that it claims by itself.
    pub fn claim(&mut self, pool: PoolId, count: u32) -> u32 {
        let Self { worker, pools, random, .. } = self;
        pools.get_mut(usize::from(pool.0)).map_or(0, |pool| pool.claim(*worker, count, random))
    }

    /// Gives blocks back that no flow uses, down to `keep` blocks (0 for a retired address). Returns how
    /// many.
    pub fn give_back(&mut self, pool: PoolId, keep: usize) -> usize {
        let Self { worker, pools, pressure, .. } = self;
        let Some(Pool { table, owned, blocks, in_use, status, retired, .. }) =
            pools.get_mut(usize::from(pool.0))
        else {
            return 0;
        };
        let keep = if *retired { 0 } else { keep };
        let mut spare = blocks.len().saturating_sub(keep);
        let before = blocks.len();
        blocks.retain(|block| {
            if spare == 0 || in_use[block.number()] > 0 {
                return true;
            }
            spare -= 1;
            status.owned -= owned[block.number()].count_ones();
            owned[block.number()] = 0;
            pressure.forget_block(pool, *block);
            table.release(*worker, *block);
            false
        });
        before - blocks.len()
    }

    /// A port of an address for a new flow to `remote`: `preferred` when possible. `is_free` says whether
    /// the flow table has no flow with such answers. Claims blocks when its own are used up.
    ///
    /// The port is taken until [`PortAllocator::release`]; also when the flow is then not installed.
    ///
    /// # Errors
    /// See [`AllocateError`].
    pub fn allocate(
        &mut self,
        pool: PoolId,
        remote: &Remote<A>,
        preferred: u16,
        now: u32,
        is_free: &mut dyn FnMut(&FlowKey<A>) -> bool,
    ) -> Result<u16, AllocateError> {
        self.cool(now, 4);
        let Self { worker, pools, pressure, cooldown, random, .. } = self;
        let of = pools
            .get_mut(usize::from(pool.0))
            .filter(|pool| !pool.retired)
            .ok_or(AllocateError::NoAddress)?;
        let mut place = pressure.find(pool, remote);
        of.claim_for(*worker, preferred);
        let mut attempt = Attempt { address: of.address, remote, cooldown, is_free, tries: 0 };
        let mut found = try_preferred(of, pressure, place, preferred, &mut attempt);
        if found.is_none() && place.is_none() {
            found = try_few(of, random, &mut attempt);
        }
        if found.is_none() {
            let place = *place.get_or_insert_with(|| pressure.begin(pool, remote));
            found = search(of, pressure, place, random, &mut attempt);
            if found.is_none() && attempt.tries < MOST && of.claim(*worker, CLAIM, random) > 0 {
                found = search(of, pressure, place, random, &mut attempt);
            }
            if found.is_none() {
                found = audit(of, pressure, place, &mut attempt);
            }
        }
        let tries = attempt.tries;
        let Some(port) = found else {
            of.status.exhausted += 1;
            return Err(AllocateError::Exhausted);
        };
        if let Some(place) = place {
            pressure.set(place, port);
        }
        of.in_use[Block::of(port).number()] += 1;
        of.status.bindings += 1;
        let log = tries.next_power_of_two().trailing_zeros() as usize;
        if let Some(count) = of.status.tries.get_mut(log) {
            *count += 1;
        }
        Ok(port)
    }

    /// Takes the port of a flow that has gone back. Only for flows that got one here, and once.
    pub fn forget(&mut self, removed: &Removed<A>, now: u32) {
        self.quota.give(removed.forward.key().source);
        let ending = Ending::of_state(removed.state);
        self.release(&removed.reverse.key(), ending, removed.last_seen(), now);
    }

    /// Takes a port back: that of the flow whose answers had this key, and whose connection ended so,
    /// with its last packet at `ended_at`. It is not used again towards the same remote before its
    /// cooldown is over.
    pub fn release(&mut self, answer: &FlowKey<A>, ending: Ending, ended_at: u32, now: u32) {
        let known = self.pools.iter().position(|pool| pool.address == answer.destination);
        let Some(place) = known else { return };
        self.pools[place].status.bindings = self.pools[place].status.bindings.saturating_sub(1);
        let pool = PoolId(u16::try_from(place).unwrap_or(u16::MAX));
        let until = match ending {
            Ending::Fin => ended_at.saturating_add(self.fin_cooldown),
            Ending::Rst => ended_at.saturating_add(self.rst_cooldown),
            Ending::Quiet => now,
        };
        let mut cools = false;
        if until > now {
            let (early, taken) = self.cooldown.push(ending, pool, answer, until);
            cools = taken;
            if let Some(Cooling { pool, answer, .. }) = early {
                self.free(pool, &answer);
            }
        }
        if !cools {
            self.free(pool, answer);
        }
    }

    /// Lets ports go whose cooldown is over, `most` of them. Allocating does some of this by itself; an
    /// idle allocator wants it before [`PortAllocator::give_back`].
    pub fn cool(&mut self, now: u32, most: u32) {
        for _ in 0..most {
            let Some(Cooling { pool, answer, .. }) = self.cooldown.pop(now) else { return };
            self.free(pool, &answer);
        }
    }

    fn free(&mut self, pool: PoolId, answer: &FlowKey<A>) {
        if let Some(of) = self.pools.get_mut(usize::from(pool.0)) {
            let in_use = &mut of.in_use[Block::of(answer.destination_port).number()];
            *in_use = in_use.saturating_sub(1);
        }
        if let Some(place) = self.pressure.find(pool, &Remote::of(answer)) {
            self.pressure.clear(place, answer.destination_port);
        }
    }

    /// How full an address is.
    #[must_use]
    pub fn status(&self, pool: PoolId) -> Option<PoolStatus> {
        self.pools.get(usize::from(pool.0)).map(|pool| pool.status)
    }

    /// Ports that are cooling down.
    #[must_use]
    pub fn cooling(&self) -> usize {
        self.cooldown.len()
    }

    /// Remotes for which free ports are hard to find, and how many ports are known to be taken towards
    /// each.
    pub fn busiest(&self) -> impl Iterator<Item = (PoolId, Remote<A>, u32)> + '_ {
        self.pressure.remotes()
    }
}

fn try_preferred<A: Address>(
    pool: &Pool<A>,
    pressure: &mut Pressure<A>,
    place: Option<Place>,
    preferred: u16,
    attempt: &mut Attempt<'_, A>,
) -> Option<u16> {
    let known = place.is_some_and(|place| pressure.is_taken(place, preferred));
    if !pool.owns(preferred) || known {
        return None;
    }
    if attempt.takes(preferred) {
        return Some(preferred);
    }
    if let Some(place) = place {
        pressure.set(place, preferred);
    }
    None
}

fn try_few<A: Address>(
    pool: &Pool<A>,
    random: &mut Random,
    attempt: &mut Attempt<'_, A>,
) -> Option<u16> {
    for _ in 0..FEW {
        let port = next_port(&pool.owned, None, pool.random_port(random))?;
        if attempt.takes(port) {
            return Some(port);
        }
    }
    None
}

/// A port that is not known to be taken, and is not.
fn search<A: Address>(
    pool: &Pool<A>,
    pressure: &mut Pressure<A>,
    place: Place,
    random: &mut Random,
    attempt: &mut Attempt<'_, A>,
) -> Option<u16> {
    while attempt.tries < MOST {
        // Another place each time: taken ports stand in rows, as pods take them in a row.
        let start = pool.random_port(random);
        let port = next_port(&pool.owned, Some(pressure.bitmap(place)), start)?;
        if attempt.takes(port) {
            return Some(port);
        }
        pressure.set(place, port);
    }
    None
}

/// Some of the ports that are said to be taken, in turn, should one be free after all.
fn audit<A: Address>(
    pool: &Pool<A>,
    pressure: &mut Pressure<A>,
    place: Place,
    attempt: &mut Attempt<'_, A>,
) -> Option<u16> {
    for _ in 0..AUDIT {
        let port = pressure.next_to_audit(place, &pool.owned)?;
        if attempt.takes(port) {
            return Some(port);
        }
    }
    None
}

#[cfg(test)]
mod tests;
