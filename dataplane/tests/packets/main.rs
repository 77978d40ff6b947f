//! Packet in, packet out: a whole node in memory. One file per behaviour; each test says what goes
//! in, exactly what must come out, and exactly which counters move. etherparse is the witness: it
//! builds what goes in and what is expected.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

mod affinity;
mod arp_nd;
mod bed;
mod build;
mod checksums;
mod coalesce;
mod connections_model;
mod decap;
mod delivery;
mod direct;
mod direct_asked;
mod dwell;
mod egress;
mod egress_tables;
mod encap;
mod flat;
mod fragments;
mod gateway;
mod icmp_error;
mod listings;
mod model;
mod nat_rig;
mod outside;
mod path_mtu;
mod pod_limit;
mod rfc4787;
mod rfc5382;
mod rfc5508;
mod scenarios_frames;
mod scenarios_policies;
mod scenarios_services;
mod scenarios_snat;
mod scenarios_tcp;
mod sctp;
mod service_tables;
mod services;
mod services_outside;
mod sizes;
mod source_check;
mod table_changes;
mod two_nodes;
mod workers;
