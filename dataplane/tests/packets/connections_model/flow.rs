//! What tells one flow from another, and how far a flow is: a list of all that was sent.

use std::net::IpAddr;

use crate::build::{Body, Packet};

/// Address and port.
pub type At = (IpAddr, u16);

/// From where to where, and by what. The identifier of a ping is the port of who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    pub from: At,
    pub to: At,
    pub protocol: u8,
}

impl Key {
    /// None for ICMP errors.
    pub fn of(packet: &Packet) -> Option<Self> {
        let icmp = if packet.source.is_ipv4() { 1 } else { 58 };
        let (from, to, protocol) = match &packet.body {
            Body::Udp(from, to, _) | Body::UdpNoSum(from, to, _) => (*from, *to, 17),
            Body::Segment(from, to, ..) => (*from, *to, 6),
            Body::Echo(false, id, ..) => (*id, 0, icmp),
            Body::Echo(true, id, ..) => (0, *id, icmp),
            _ => return None,
        };
        Some(Self { from: (packet.source, from), to: (packet.destination, to), protocol })
    }

    pub const fn back(self) -> Self {
        Self { from: self.to, to: self.from, protocol: self.protocol }
    }
}

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 16;

/// TCP flags; 0 for anything else.
pub fn flags_of(packet: &Packet) -> u8 {
    if let Body::Segment(_, _, flags, _) = packet.body { flags } else { 0 }
}

/// How far a TCP connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Opening,
    Established,
    Closing,
    Reset,
}

/// A remembered flow.
#[derive(Debug, Clone)]
pub struct Flow {
    /// As the opener sends.
    pub there: Key,
    /// As that leaves.
    pub out: Key,
    /// To which service, and in which of its lives.
    pub service: Option<(u8, u64)>,
    /// Taken over in its middle.
    pub adopted: bool,
    /// Its port outside is one of the range.
    pub has_port: bool,
    /// Everything that was sent: by the opener? with which flags?
    pub history: Vec<(bool, u8)>,
    /// When the last packet came, milliseconds.
    pub last: u64,
}

impl Flow {
    fn sent(&self, by_opener: bool, flag: u8) -> bool {
        self.history.iter().any(|(opener, flags)| *opener == by_opener && flags & flag != 0)
    }

    fn answered(&self) -> bool {
        let heard = self.history.iter().any(|(by_opener, _)| !by_opener);
        heard && (self.there.protocol != 6 || self.adopted || self.sent(false, SYN))
    }

    /// Has that side sent a RST and taken it back by nothing?
    fn stands_reset(&self, opener: bool) -> bool {
        let own = self.history.iter().filter(|(by, _)| *by == opener);
        own.fold(false, |reset, (_, flags)| flags & RST != 0 || reset && flags & (FIN | SYN) != 0)
    }

    /// Has that side reset the connection, and the other not gone on with data since?
    fn reset_by(&self, opener: bool) -> bool {
        let was_last = self.history.last().is_some_and(|(by, _)| *by == opener);
        let other_is_open = !self.sent(!opener, FIN) && !self.stands_reset(!opener);
        self.stands_reset(opener) && (was_last || !other_is_open)
    }

    pub fn state(&self) -> State {
        if self.answered() && self.sent(true, FIN) && self.sent(false, FIN) {
            State::Closing
        } else if self.reset_by(true) || self.reset_by(false) {
            State::Reset
        } else if self.answered() && (self.adopted || self.sent(true, ACK)) {
            State::Established
        } else {
            State::Opening
        }
    }

    /// Seconds that it is remembered after its last packet.
    pub fn patience(&self) -> u64 {
        match self.there.protocol {
            6 if self.state() == State::Established => 7440,
            6 => 240,
            17 if self.there.to.1 == 53 || self.out.to.1 == 53 => 30,
            17 if self.answered() => 350,
            17 => 120,
            _ => 60,
        }
    }
}
