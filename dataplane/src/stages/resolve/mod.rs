//! What is decided for a packet that no earlier packet decided for. Today that is its route and
//! its hop; services, policy and source translation stand here when connections do.

pub mod hop;
pub mod route;
