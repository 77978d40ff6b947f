//! How long a flow is remembered without packets.

use super::TICK_NS;
use super::half::Half;
use super::tcp_state::FlowState;
use crate::packet::flow_key::{Address, Transport};

const NS_PER_S: u64 = 1_000_000_000;
/// DNS.
const DNS: u16 = 53;

/// Ticks of coarse time in so many seconds, rounded up.
#[must_use]
pub fn ticks(seconds: u32) -> u32 {
    u32::try_from((u64::from(seconds) * NS_PER_S).div_ceil(TICK_NS)).unwrap_or(u32::MAX)
}

/// Seconds in so many ticks, rounded down.
#[must_use]
pub fn seconds(ticks: u32) -> u32 {
    // A tick is less than a second.
    u32::try_from(u64::from(ticks) * TICK_NS / NS_PER_S).unwrap_or(u32::MAX)
}

/// The node's timeouts (`overlane_api::Timeouts`, where the sources are), in ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    tcp_syn: u32,
    tcp_handshake: u32,
    tcp_established: u32,
    tcp_fin: u32,
    tcp_closing: u32,
    tcp_reset: u32,
    udp_one_way: u32,
    udp: u32,
    udp_dns: u32,
    icmp: u32,
    sctp_established: u32,
    sctp: u32,
    other: u32,
    fragments: u32,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self::new(&overlane_api::Timeouts::default())
    }
}

impl Timeouts {
    /// Those of the node's settings.
    #[must_use]
    pub fn new(settings: &overlane_api::Timeouts) -> Self {
        Self {
            tcp_syn: ticks(settings.tcp_syn),
            tcp_handshake: ticks(settings.tcp_handshake),
            tcp_established: ticks(settings.tcp_established),
            tcp_fin: ticks(settings.tcp_fin),
            tcp_closing: ticks(settings.tcp_closing),
            tcp_reset: ticks(settings.tcp_reset),
            udp_one_way: ticks(settings.udp_one_way),
            udp: ticks(settings.udp),
            udp_dns: ticks(settings.udp_dns),
            icmp: ticks(settings.icmp),
            sctp_established: ticks(settings.sctp_established),
            sctp: ticks(settings.sctp),
            other: ticks(settings.other),
            fragments: ticks(settings.fragments),
        }
    }

    /// Ticks that fragments of one datagram are waited for.
    #[must_use]
    pub fn fragments(&self) -> u32 {
        self.fragments
    }

    /// Ticks that a flow stays after its last packet.
    #[must_use]
    pub fn of<A: Address>(&self, forward: &Half<A>, state: FlowState) -> u32 {
        match (forward.key().transport(), state) {
            (Transport::Tcp, state) => match state {
                FlowState::Syn | FlowState::OneWay => self.tcp_syn,
                FlowState::Handshake => self.tcp_handshake,
                FlowState::Established | FlowState::TwoWay => self.tcp_established,
                FlowState::FinOpener | FlowState::FinPeer => self.tcp_fin,
                FlowState::Closing => self.tcp_closing,
                FlowState::Reset => self.tcp_reset,
            },
            (Transport::Udp, _) if is_dns(forward) => self.udp_dns,
            (Transport::Udp, FlowState::OneWay) => self.udp_one_way,
            (Transport::Udp, _) => self.udp,
            (Transport::Icmp, _) => self.icmp,
            (Transport::Sctp, FlowState::Established) => self.sctp_established,
            (Transport::Sctp, _) => self.sctp,
            (Transport::Other, _) => self.other,
        }
    }

    /// Ticks after which a flow is to be looked at again, however long it may stay: its state can
    /// have become one that lasts as short as this, and nobody says so.
    #[must_use]
    pub(super) fn revisit<A: Address>(&self, forward: &Half<A>) -> u32 {
        let shortest = match forward.key().transport() {
            Transport::Tcp => self
                .tcp_syn
                .min(self.tcp_handshake)
                .min(self.tcp_established)
                .min(self.tcp_fin)
                .min(self.tcp_closing)
                .min(self.tcp_reset),
            Transport::Udp if is_dns(forward) => self.udp_dns,
            Transport::Udp => self.udp_one_way.min(self.udp),
            Transport::Icmp => self.icmp,
            Transport::Sctp => self.sctp.min(self.sctp_established),
            Transport::Other => self.other,
        };
        // Not every sweep for settings of 0.
        shortest.max(ticks(1))
    }
}

/// A query to a name server, by the address the opener used or by that of the backend.
fn is_dns<A: Address>(forward: &Half<A>) -> bool {
    forward.key().destination_port == DNS || forward.leaving_as().destination_port == DNS
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::half::{Rewrite, Way};
    use crate::packet::flow_key::FlowKey4;

    fn half(protocol: u8, destination_port: u16, new_destination_port: u16) -> Half<u32> {
        let key =
            FlowKey4 { source: 1, destination: 2, source_port: 3, destination_port, protocol };
        let to = FlowKey4 { destination_port: new_destination_port, ..key };
        Half::new(&key, &Rewrite::between(&key, &to), &Way::default(), 0)
    }

    #[test]
    fn ticks_are_never_shorter_than_the_seconds_they_stand_for() {
        for seconds in [0, 1, 16, 30, 65, 7440, 432_000, u32::MAX] {
            let ticks = ticks(seconds);
            if ticks < u32::MAX {
                assert!(u64::from(ticks) * TICK_NS >= u64::from(seconds) * NS_PER_S);
                assert_eq!(super::seconds(ticks), seconds);
            }
        }
        assert_eq!(ticks(240), 3577);
    }

    #[test]
    fn every_state_has_the_documented_default() {
        use FlowState::{
            Closing, Established, FinOpener, FinPeer, Handshake, OneWay, Reset, Syn, TwoWay,
        };
        let timeouts = Timeouts::default();
        for (protocol, port, state, expected) in [
            (6, 443, Syn, 240),
            (6, 443, Handshake, 240),
            (6, 443, Established, 7440),
            (6, 443, FinOpener, 7440),
            (6, 443, FinPeer, 7440),
            (6, 443, Closing, 240),
            (6, 443, Reset, 240),
            (6, 53, Established, 7440),
            (17, 123, OneWay, 120),
            (17, 123, TwoWay, 300),
            (17, 53, OneWay, 30),
            (17, 53, TwoWay, 30),
            (1, 0, OneWay, 60),
            (1, 0, TwoWay, 60),
            (58, 0, TwoWay, 60),
            (132, 5060, Syn, 240),
            (132, 5060, Handshake, 240),
            (132, 5060, Established, 7440),
            (132, 5060, FinOpener, 240),
            (132, 5060, FinPeer, 240),
            (132, 5060, Closing, 240),
            (132, 5060, Reset, 240),
            (47, 0, OneWay, 600),
            (47, 0, TwoWay, 600),
        ] {
            let of = timeouts.of(&half(protocol, port, port), state);
            assert_eq!(of, ticks(expected), "protocol {protocol} port {port} {state:?}");
        }
        assert_eq!(timeouts.fragments(), ticks(30));
    }

    #[test]
    fn a_name_server_is_one_before_and_behind_the_service() {
        let timeouts = Timeouts::default();
        let of = |before, behind| timeouts.of(&half(17, before, behind), FlowState::TwoWay);
        assert_eq!(of(53, 5353), ticks(30));
        assert_eq!(of(5353, 53), ticks(30));
        assert_eq!(of(5353, 5353), ticks(300));
    }

    #[test]
    fn a_flow_is_looked_at_as_often_as_its_shortest_state_asks() {
        let timeouts = Timeouts::new(&overlane_api::Timeouts {
            tcp_reset: 10,
            icmp: 0,
            ..overlane_api::Timeouts::default()
        });
        assert_eq!(timeouts.revisit(&half(6, 443, 443)), ticks(10));
        assert_eq!(timeouts.revisit(&half(17, 443, 443)), ticks(120));
        assert_eq!(timeouts.revisit(&half(1, 0, 0)), ticks(1));
    }
}
