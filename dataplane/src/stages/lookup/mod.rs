//! Which flow is the packet of?

pub mod conntrack;
pub mod established;
mod related;
