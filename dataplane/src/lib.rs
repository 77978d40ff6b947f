//! Overlane's dataplane: what is done with each packet.

pub mod io;
pub mod packet;
