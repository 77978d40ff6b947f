//! Which ports the next flows will try first, so that memory can be asked for ahead.

use super::{PortAllocator, next_port};
use crate::packet::flow_key::Address;

/// How many random ports have been foreseen, since the last one was given.
#[derive(Debug, Clone, Copy, Default)]
pub struct Foreseen(usize);

impl<A: Address> PortAllocator<A> {
    /// The port of an address that the next new flow will try first, or the one after those that were
    /// foreseen: as long as none of them is taken, and all are of one address.
    pub fn foresee(&mut self, address: A, preferred: u16, foreseen: &mut Foreseen) -> Option<u16> {
        let Self { pools, random, .. } = self;
        let pool = pools.iter().find(|pool| pool.address == address)?;
        if pool.owns(preferred) {
            return Some(preferred);
        }
        let number = random.foresee(foreseen.0)?;
        foreseen.0 += 1;
        next_port(&pool.owned, None, pool.port_of(number))
    }
}
