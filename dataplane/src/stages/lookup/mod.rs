//! Which flow is the packet of?

pub mod conntrack;
mod related;
