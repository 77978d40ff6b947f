//! State of a connection, derived from what its two directions have shown.
//!
//! ```text
//!            SYN                SYN (/ACK) back          ACK
//!   (none) ------> Syn -----------------------> Handshake -----> Established
//!                   |                                             |  FIN of one side
//!                   | RST                                         v
//!                   v          RST, of either side         FinOpener, FinPeer
//!                 Reset <---------------------------------------- |  FIN of the other
//!                   |                                             v
//!                   '--> data: back to Established             Closing
//!
//!   Closing, Reset: a new SYN is a new connection (see `reopens`).
//! ```
//!
//! Nothing stores a state: each direction keeps the flags it has shown, and no packet writes what the
//! other direction's packets read. There is no window tracking; who knows both ends' addresses and
//! ports is believed. RFC 6146 section 3.5.2, RFC 7857 section 2.
//!
//! An SCTP association goes the same way: INIT is its SYN, SHUTDOWN its FIN, ABORT its RST (RFC 9260
//! section 4).

use super::Direction;
use super::flows::DIRECT;
use super::half::Half;
use crate::packet::flow_key::{Address, Transport};

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;
const URG: u8 = 0x20;

/// What one direction has shown: TCP's FIN, SYN and ACK where TCP has them, RST when nothing but a
/// FIN or SYN came after it, and whether there was a packet at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Seen(pub(super) u8);

impl Seen {
    /// There was a packet. The place of PSH, which does not matter.
    const PACKET: u8 = 0x08;
    /// The flow was taken over in its middle: nobody waits for a handshake.
    pub(super) const ADOPTED: Self = Self(0x20);

    /// No state, but kept beside it: see [`Half::is_asked_for`].
    pub(super) const ASKED_FOR: u8 = 0x80;

    /// After a packet with these flags.
    #[inline]
    pub(super) const fn and(self, flags: u8) -> Self {
        // 1 for a FIN or SYN, which do not make a RST unseen.
        let keeps = (flags | flags >> 1) & 1;
        let before = self.0 & (!RST | keeps << 2);
        Self(before | flags & (FIN | SYN | RST | ACK) | Self::PACKET)
    }

    const fn has(self, flag: u8) -> bool {
        self.0 & flag != 0
    }
}

/// How far a flow is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FlowState {
    /// TCP, as the six below, and SCTP: SYN seen, no answer. `SYN_SENT`.
    Syn,
    /// TCP: SYN and SYN/ACK seen.
    Handshake,
    /// TCP: both ends have agreed.
    Established,
    /// TCP: the opener has closed its side.
    FinOpener,
    /// TCP: the other end has closed its side.
    FinPeer,
    /// TCP: both sides are closed.
    Closing,
    /// TCP: a RST was seen, and no data since. `RST_TRANS`.
    Reset,
    /// Neither: no answer yet.
    OneWay,
    /// Neither: packets both ways.
    TwoWay,
}

impl FlowState {
    /// Its name in listings.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Syn => "syn",
            Self::Handshake => "handshake",
            Self::Established => "established",
            Self::FinOpener | Self::FinPeer => "fin",
            Self::Closing => "closing",
            Self::Reset => "reset",
            Self::OneWay => "one_way",
            Self::TwoWay => "two_way",
        }
    }

    /// The state of the flow with these halves.
    #[must_use]
    pub fn of<A: Address>(forward: &Half<A>, reverse: &Half<A>) -> Self {
        let (opener, peer) = (forward.seen(), reverse.seen());
        if !matches!(forward.key().transport(), Transport::Tcp | Transport::Sctp) {
            return if peer.has(Seen::PACKET) { Self::TwoWay } else { Self::OneWay };
        }
        if forward.marks() & DIRECT != 0 {
            return Self::of_opener(opener);
        }
        let adopted = opener.has(Seen::ADOPTED.0);
        let answered = peer.has(SYN) || adopted && peer.has(Seen::PACKET);
        if answered && opener.has(FIN) && peer.has(FIN) {
            Self::Closing
        } else if resets(forward, reverse) || resets(reverse, forward) {
            Self::Reset
        } else if !answered {
            Self::Syn
        } else if !adopted && !opener.has(ACK) {
            Self::Handshake
        } else if opener.has(FIN) {
            Self::FinOpener
        } else if peer.has(FIN) {
            Self::FinPeer
        } else {
            Self::Established
        }
    }

    /// The state of a connection of which only the opener's direction is seen.
    const fn of_opener(opener: Seen) -> Self {
        if opener.has(RST) {
            Self::Reset
        } else if opener.has(FIN) {
            Self::Closing
        } else if opener.has(ACK) || opener.has(Seen::ADOPTED.0) {
            // Who acknowledges was answered.
            Self::Established
        } else {
            Self::Syn
        }
    }

    /// Does a packet with these flags begin a new connection on a flow in this state? The caller
    /// then forgets the old one: a SYN of the opener may go to another backend, so the flow is removed
    /// and set up again; after a SYN of the peer the roles and the addresses stay
    /// ([`super::table::FlowTable::restart`]).
    ///
    /// To be asked before the packet is recorded, and only for packets with SYN: they are few.
    #[must_use]
    pub const fn reopens(self, direction: Direction, tcp_flags: u8) -> bool {
        let begins = match direction {
            // A SYN/ACK of the opener answers something.
            Direction::Forward => tcp_flags & (SYN | ACK) == SYN,
            Direction::Reverse => tcp_flags & SYN != 0,
        };
        begins && matches!(self, Self::Closing | Self::Reset)
    }
}

/// Has `from` reset the connection, and `to` shown no data since? Within one tick nobody knows what
/// came first; it is taken as reset.
fn resets<A: Address>(from: &Half<A>, to: &Half<A>) -> bool {
    let other = to.seen();
    // After its own FIN or RST no new data comes from `to`.
    let goes_on = to.last_seen() > from.last_seen() && !other.has(FIN | RST);
    from.seen().has(RST) && !goes_on
}

/// Is this a set of flags that some TCP sends? SYN with FIN or RST, none at all, and all of them are
/// scans or damage, as is everything but SYN and RST without ACK.
#[inline]
#[must_use]
pub const fn tcp_flags_valid(tcp_flags: u8) -> bool {
    const fn set(all: u64, flags: u8) -> u64 {
        all | 1 << flags
    }
    const VALID: u64 = {
        let all = set(set(set(0, SYN), SYN | URG), SYN | ACK);
        let all = set(set(all, RST), RST | ACK);
        let all = set(set(all, ACK), ACK | URG);
        set(set(all, FIN | ACK), FIN | ACK | URG)
    };
    VALID >> (tcp_flags & (FIN | SYN | RST | ACK | URG)) & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::half::{Rewrite, Way};
    use crate::packet::flow_key::FlowKey4;

    use Direction::{Forward, Reverse};

    struct Connection {
        halves: [Half<u32>; 2],
        now: u32,
    }

    impl Connection {
        fn new(protocol: u8) -> Self {
            let key = FlowKey4 {
                source: 1,
                destination: 2,
                source_port: 3,
                destination_port: 4,
                protocol,
            };
            let half = |key| Half::new(&key, &Rewrite::between(&key, &key), &Way::default(), 0);
            Self { halves: [half(key), half(key.reversed())], now: 0 }
        }

        fn state(&self) -> FlowState {
            FlowState::of(&self.halves[0], &self.halves[1])
        }

        fn packet(mut self, (direction, flags): (Direction, u8)) -> Self {
            self.now += 1;
            self.halves[direction as usize].record(flags, 40, self.now);
            self
        }

        fn packets(self, packets: &[(Direction, u8)]) -> Self {
            packets.iter().fold(self, |connection, packet| connection.packet(*packet))
        }
    }

    const SYN_OUT: (Direction, u8) = (Forward, SYN);
    const SYN_BACK: (Direction, u8) = (Reverse, SYN | ACK);
    const DATA_OUT: (Direction, u8) = (Forward, ACK | 0x08);
    const DATA_BACK: (Direction, u8) = (Reverse, ACK);
    const FIN_OUT: (Direction, u8) = (Forward, FIN | ACK);
    const FIN_BACK: (Direction, u8) = (Reverse, FIN | ACK);
    const RST_OUT: (Direction, u8) = (Forward, RST);
    const RST_BACK: (Direction, u8) = (Reverse, RST | ACK);

    /// How a state is reached, by its name.
    fn reach(name: &str) -> Connection {
        let open = [SYN_OUT, SYN_BACK, DATA_OUT];
        let more: &[_] = match name {
            "SYN_SENT" => return Connection::new(6).packet(SYN_OUT),
            "SYN_RECEIVED" => return Connection::new(6).packets(&[SYN_OUT, SYN_BACK]),
            "ESTABLISHED" => &[],
            "FIN_A" => &[FIN_OUT],
            "FIN_B" => &[FIN_BACK],
            "CLOSING" => &[FIN_OUT, FIN_BACK],
            "RST_TRANS" => &[RST_BACK],
            _ => panic!("no state {name}"),
        };
        Connection::new(6).packets(&open).packets(more)
    }

    fn name(state: FlowState) -> &'static str {
        match state {
            FlowState::Syn => "SYN_SENT",
            FlowState::Handshake => "SYN_RECEIVED",
            FlowState::Established => "ESTABLISHED",
            FlowState::FinOpener => "FIN_A",
            FlowState::FinPeer => "FIN_B",
            FlowState::Closing => "CLOSING",
            FlowState::Reset => "RST_TRANS",
            FlowState::OneWay | FlowState::TwoWay => "not TCP",
        }
    }

    #[test]
    fn states_follow_the_table() {
        const NEW: &str = "new connection";
        // From; then SYN of the opener, SYN(/ACK) of the peer, data of the opener, of the peer, FIN of
        // the opener, of the peer, RST of the opener, of the peer.
        let events = [SYN_OUT, SYN_BACK, DATA_OUT, DATA_BACK, FIN_OUT, FIN_BACK, RST_OUT, RST_BACK];
        let (syn, shaken, open) = ("SYN_SENT", "SYN_RECEIVED", "ESTABLISHED");
        let (fin_a, fin_b, closing, reset) = ("FIN_A", "FIN_B", "CLOSING", "RST_TRANS");
        for (from, to) in [
            (syn, [syn, shaken, syn, syn, syn, syn, reset, reset]),
            // The opener's next packet is the handshake's last, whatever else it says.
            (shaken, [shaken, shaken, open, shaken, fin_a, shaken, reset, reset]),
            (open, [open, open, open, open, fin_a, fin_b, reset, reset]),
            (fin_a, [fin_a, fin_a, fin_a, fin_a, fin_a, closing, reset, reset]),
            (fin_b, [fin_b, fin_b, fin_b, fin_b, closing, fin_b, reset, reset]),
            (closing, [NEW, NEW, closing, closing, closing, closing, closing, closing]),
            // A FIN after a RST leaves it a RST.
            (reset, [NEW, NEW, open, open, reset, reset, reset, reset]),
        ] {
            assert_eq!(name(reach(from).state()), from);
            for (event, expected) in events.into_iter().zip(to) {
                let connection = reach(from);
                let found = if connection.state().reopens(event.0, event.1) {
                    NEW
                } else {
                    name(connection.packet(event).state())
                };
                assert_eq!(found, expected, "{from}, after {event:?}");
            }
        }
    }

    #[test]
    fn both_may_open_at_once() {
        let both = Connection::new(6).packets(&[SYN_OUT, (Reverse, SYN), (Forward, SYN | ACK)]);
        assert_eq!(both.state(), FlowState::Established);
    }

    #[test]
    fn a_reset_within_the_tick_of_data_is_a_reset() {
        let mut connection = reach("ESTABLISHED").packet(RST_OUT);
        let now = connection.now;
        connection.halves[1].record(ACK, 40, now);
        assert_eq!(connection.state(), FlowState::Reset);
        connection.halves[1].record(ACK, 40, now + 1);
        assert_eq!(connection.state(), FlowState::Established);
        connection.halves[0].record(RST, 40, now + 2);
        assert_eq!(connection.state(), FlowState::Reset);
    }

    #[test]
    fn an_adopted_connection_waits_for_an_answer_but_for_no_handshake() {
        let mut connection = Connection::new(6);
        connection.halves[0].adopt();
        let connection = connection.packet(DATA_OUT);
        assert_eq!(connection.state(), FlowState::Syn);
        let connection = connection.packet(DATA_BACK);
        assert_eq!(connection.state(), FlowState::Established);
        assert_eq!(connection.packets(&[FIN_BACK, FIN_OUT]).state(), FlowState::Closing);
    }

    #[test]
    fn an_association_is_a_connection() {
        let init = Connection::new(132).packet(SYN_OUT);
        assert_eq!(init.state(), FlowState::Syn);
        let shaken = init.packet(SYN_BACK);
        assert_eq!(shaken.state(), FlowState::Handshake);
        // COOKIE ECHO.
        let open = shaken.packet(DATA_OUT).packet(DATA_BACK);
        assert_eq!(open.state(), FlowState::Established);
        let closed = open.packet(FIN_OUT).packet(FIN_BACK);
        assert_eq!(closed.state(), FlowState::Closing);
        assert!(closed.state().reopens(Forward, SYN));
    }

    #[test]
    fn others_are_answered_or_not() {
        for protocol in [1, 17, 58, 47] {
            let flow = Connection::new(protocol).packet((Forward, 0));
            assert_eq!(flow.state(), FlowState::OneWay);
            assert_eq!(flow.packet((Reverse, 0)).state(), FlowState::TwoWay);
        }
    }

    #[test]
    fn a_syn_ack_of_the_opener_opens_nothing() {
        assert!(!FlowState::Closing.reopens(Forward, SYN | ACK));
        assert!(!FlowState::Established.reopens(Forward, SYN));
        assert!(!FlowState::Closing.reopens(Reverse, ACK));
    }

    #[test]
    fn flags_that_no_tcp_sends_are_invalid() {
        let valid = [0x02, 0x12, 0x04, 0x14, 0x10, 0x11, 0x18, 0x19, 0x22, 0x30, 0x31, 0x38, 0x39];
        for flags in 0..=255_u8 {
            // ECE, CWR and PSH go with everything.
            let known = valid.iter().any(|v| v & !0x08 == flags & 0x37);
            assert_eq!(tcp_flags_valid(flags), known, "{flags:#04x}");
        }
        for (flags, what) in [(0, "none"), (0x3f, "all"), (0x03, "SYN+FIN"), (0x06, "SYN+RST")] {
            assert!(!tcp_flags_valid(flags), "{what}");
        }
    }
}
