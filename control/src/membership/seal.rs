//! Messages that only who has the key can make, and that are believed once.
//!
//! ```text
//!  0        4                12                                       n
//! +--------+----------------+----------------------------------------+------------------+
//! | "OVM1" | sent at, in us | the message                            | HMAC, first half |
//! +--------+----------------+----------------------------------------+------------------+
//! ```
//! HMAC-SHA-256-128 (RFC 2104, RFC 4868) over what the message is for, the addresses of sender and receiver and all
//! that stands before it. The time, microseconds since 1970 and more with each message, says which is new: it
//! is more than the last one's of the same sender, within 30 seconds of this node's clock, and not from
//! before this node listened, which remembers nothing from then. So nothing has to outlive a restart. A message
//! that was overtaken is lost; others follow.
//!
//! What is not signed begins otherwise: with the variant of an address, 0 or 1. A node without keys takes
//! signed messages for what they say, so that keys can be given to one node after the other.

use std::collections::HashMap;
use std::net::IpAddr;

use hmac::Mac as _;

use super::keys::Keys;

const MAGIC: [u8; 4] = *b"OVM1";
const TIME: usize = 8;
const MAC: usize = 16;
/// What makes this use of the key another than all others.
const PURPOSE: &[u8] = b"overlane membership message 1";

/// Bytes that it adds to a message.
pub const OVERHEAD: usize = MAGIC.len() + TIME + MAC;

/// By how much the clocks of two nodes may differ, microseconds.
pub const SKEW_US: u64 = 30_000_000;
/// How long before this node listened a message may have been sent, by its sender's clock, microseconds: as
/// much as clocks that are kept differ at most.
const BEFORE_US: u64 = 2_000_000;

/// Why a message is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// It is not signed, or with no key of ours, or for another node.
    Unauthenticated,
    /// It is signed, but the time in it is so many microseconds off, or from before this node listened.
    Stale {
        /// The sender's clock less this node's.
        ahead_us: i64,
    },
    /// It is signed, but another one was sent later and came before, or it came before itself.
    Replayed,
}

/// Signs what this node sends, and looks at what it gets.
#[derive(Debug)]
pub struct Seal {
    keys: Keys,
    accept_unsigned: bool,
    own: IpAddr,
    listens_since_us: u64,
    last_sent_us: u64,
    /// When the last message was sent that was believed, by sender. Who is in it has a key.
    last_us: HashMap<IpAddr, u64>,
}

impl Seal {
    /// For the node at `own`, which listens from now on: microseconds since 1970.
    #[must_use]
    pub fn new(keys: Keys, accept_unsigned: bool, own: IpAddr, now_us: u64) -> Self {
        let (listens_since_us, last_us) = (now_us, HashMap::new());
        Self { keys, accept_unsigned, own, listens_since_us, last_sent_us: 0, last_us }
    }

    /// Signs a message to `to`.
    #[must_use]
    pub fn seal(&mut self, to: IpAddr, message: &[u8], now_us: u64) -> Vec<u8> {
        self.last_sent_us = now_us.max(self.last_sent_us + 1);
        let mut sealed = Vec::with_capacity(message.len() + OVERHEAD);
        sealed.extend(MAGIC);
        sealed.extend(self.last_sent_us.to_be_bytes());
        sealed.extend(message);
        if let Some(key) = self.keys.first() {
            let mac = over(key, self.own, to, &sealed).finalize().into_bytes();
            sealed.extend(mac.iter().take(MAC));
        }
        sealed
    }

    /// The message in what came from `from`.
    ///
    /// # Errors
    /// Why it is not to be believed.
    pub fn open<'d>(
        &mut self,
        from: IpAddr,
        data: &'d [u8],
        now_us: u64,
    ) -> Result<&'d [u8], Refused> {
        let Some((sent_us, message, mac)) = parts(data) else {
            let is_plain = !data.starts_with(&MAGIC);
            return if self.accept_unsigned && is_plain {
                Ok(data)
            } else {
                Err(Refused::Unauthenticated)
            };
        };
        let covered = data.get(..data.len() - MAC).unwrap_or_default();
        // In a time that does not tell how much of it is right.
        let is_signed = self
            .keys
            .each()
            .any(|key| over(key, from, self.own, covered).verify_truncated_left(mac).is_ok());
        if !is_signed {
            return Err(Refused::Unauthenticated);
        }
        let is_from_before = sent_us.saturating_add(BEFORE_US) < self.listens_since_us;
        if sent_us.abs_diff(now_us) > SKEW_US || is_from_before {
            return Err(Refused::Stale { ahead_us: sent_us.wrapping_sub(now_us).cast_signed() });
        }
        let last = self.last_us.entry(from).or_default();
        if sent_us <= *last {
            return Err(Refused::Replayed);
        }
        *last = sent_us;
        Ok(message)
    }
}

/// The message in what came to a node without keys.
#[must_use]
pub fn unsealed(data: &[u8]) -> &[u8] {
    parts(data).map_or(data, |(_, message, _)| message)
}

/// When it was sent, the message, and the signature; none: it is not signed.
fn parts(data: &[u8]) -> Option<(u64, &[u8], &[u8])> {
    let (time, rest) = data.strip_prefix(&MAGIC)?.split_first_chunk::<TIME>()?;
    let (message, mac) = rest.split_at_checked(rest.len().checked_sub(MAC)?)?;
    Some((u64::from_be_bytes(*time), message, mac))
}

fn over(
    mut key: hmac::Hmac<sha2::Sha256>,
    from: IpAddr,
    to: IpAddr,
    covered: &[u8],
) -> hmac::Hmac<sha2::Sha256> {
    let octets = |address: IpAddr| match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    };
    for part in [PURPOSE, &octets(from), &octets(to), covered] {
        key.update(part);
    }
    key
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const START: u64 = 1_800_000_000_000_000;
    const SECOND: u64 = 1_000_000;

    fn node(number: u8) -> IpAddr {
        IpAddr::from([10, 0, 1, number])
    }

    fn keys(digits: &str) -> Keys {
        let lines: Vec<String> = digits.chars().map(|digit| digit.to_string().repeat(64)).collect();
        Keys::parse(&lines.join("\n")).unwrap()
    }

    fn seal(number: u8, digits: &str) -> Seal {
        Seal::new(keys(digits), false, node(number), START)
    }

    #[test]
    fn a_message_is_believed_once() {
        let (mut one, mut two) = (seal(1, "a"), seal(2, "a"));
        let first = one.seal(node(2), b"first", START + 1);
        let second = one.seal(node(2), b"second", START + 1);
        assert_eq!(first.len(), 5 + OVERHEAD);
        assert_eq!(two.open(node(1), &first, START + 9), Ok(&b"first"[..]));
        assert_eq!(two.open(node(1), &first, START + 9), Err(Refused::Replayed));
        assert_eq!(
            two.open(node(1), &second, START + 9),
            Ok(&b"second"[..]),
            "of the same microsecond"
        );
        assert_eq!(two.open(node(1), &first, START + 9), Err(Refused::Replayed), "overtaken");
        let third = one.seal(node(2), b"", START - 5 * SECOND);
        assert_eq!(two.open(node(1), &third, START + 10), Ok(&b""[..]), "the clock was set back");
    }

    #[test]
    fn who_has_no_key_or_speaks_for_another_is_refused() {
        let mut two = seal(2, "a");
        let refused = Err(Refused::Unauthenticated);
        let good = seal(1, "a").seal(node(2), b"message", START);
        for (from, data) in [
            (node(1), seal(1, "b").seal(node(2), b"message", START)),
            (node(1), b"message".to_vec()),
            (node(1), Vec::new()),
            (node(1), MAGIC.to_vec()),
            (node(1), good[..OVERHEAD - 1].to_vec()),
            (node(1), good[..good.len() - 1].to_vec()),
            (node(1), [&good[..], b"x"].concat()),
            // To another node, and sent back to its sender, and by another.
            (node(1), seal(1, "a").seal(node(3), b"message", START)),
            (node(1), two.seal(node(1), b"message", START)),
            (node(3), good.clone()),
        ] {
            assert_eq!(two.open(from, &data, START), refused, "{data:?}");
        }
        assert_eq!(two.open(node(1), &good, START), Ok(&b"message"[..]));
    }

    #[test]
    fn clocks_may_differ_a_little() {
        for (ahead, is_taken) in [(0, true), (29, true), (31, false), (-29, true), (-31, false)] {
            let mut two = Seal::new(keys("a"), false, node(2), START - 100 * SECOND);
            let sent = START.checked_add_signed(ahead * SECOND.cast_signed()).unwrap();
            let sealed = seal(1, "a").seal(node(2), b"x", sent);
            let opened = two.open(node(1), &sealed, START);
            let stale = Err(Refused::Stale { ahead_us: ahead * SECOND.cast_signed() });
            assert_eq!(opened, if is_taken { Ok(&b"x"[..]) } else { stale });
        }
    }

    #[test]
    fn what_was_sent_before_a_restart_is_not_believed_after_it() {
        let mut one = seal(1, "a");
        let before = one.seal(node(2), b"x", START);
        assert!(seal(2, "a").open(node(1), &before, START).is_ok());
        // A few seconds later there is another process, which has not heard that.
        let mut again = Seal::new(keys("a"), false, node(2), START + 5 * SECOND);
        let ahead_us = -6 * SECOND.cast_signed();
        let stale = Err(Refused::Stale { ahead_us });
        assert_eq!(again.open(node(1), &before, START + 6 * SECOND), stale);
        // The other one goes on, by a clock that is a second late.
        let after = one.seal(node(2), b"y", START + 4 * SECOND);
        assert_eq!(again.open(node(1), &after, START + 6 * SECOND), Ok(&b"y"[..]));
        // And the sender may have been started anew.
        let anew = seal(1, "a").seal(node(2), b"z", START + 7 * SECOND);
        assert_eq!(again.open(node(1), &anew, START + 7 * SECOND), Ok(&b"z"[..]));
    }

    /// Give all nodes the new key as the second, then as the first, then take the old one away.
    #[test]
    fn a_key_is_changed_while_nodes_speak() {
        let steps = ["a", "ab", "ba", "b"];
        for pair in steps.windows(2) {
            for (from, to) in [(pair[0], pair[1]), (pair[1], pair[0]), (pair[1], pair[1])] {
                let sealed = seal(1, from).seal(node(2), b"x", START);
                assert_eq!(seal(2, to).open(node(1), &sealed, START), Ok(&b"x"[..]), "{from} {to}");
            }
        }
        let sealed = seal(1, "a").seal(node(2), b"x", START);
        assert_eq!(seal(2, "b").open(node(1), &sealed, START), Err(Refused::Unauthenticated));
    }

    /// Keys are given to one node after the other: first they sign and take what is not signed.
    #[test]
    fn keys_are_introduced_while_nodes_speak() {
        let mut two = Seal::new(keys("a"), true, node(2), START);
        assert_eq!(two.open(node(1), b"\0plain", START), Ok(&b"\0plain"[..]));
        let forged = seal(1, "b").seal(node(2), b"\0signed", START);
        assert_eq!(two.open(node(1), &forged, START), Err(Refused::Unauthenticated));
        let sealed = two.seal(node(1), b"\0signed", START);
        assert_eq!(unsealed(&sealed), b"\0signed");
        assert_eq!(unsealed(b"\0plain"), b"\0plain");
    }

    #[test]
    fn ipv6_is_the_same() {
        let (own, other): (IpAddr, IpAddr) =
            ("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap());
        let sealed = Seal::new(keys("a"), false, own, START).seal(other, b"x", START);
        assert_eq!(
            Seal::new(keys("a"), false, other, START).open(own, &sealed, START),
            Ok(&b"x"[..])
        );
    }

    proptest! {
        #[test]
        fn a_changed_bit_is_noticed_wherever_it_is(
            message in prop::collection::vec(any::<u8>(), 0..100), at: prop::sample::Index, bit in 0..8_u8,
        ) {
            let mut sealed = seal(1, "a").seal(node(2), &message, START);
            let at = at.index(sealed.len());
            sealed[at] ^= 1_u8 << bit;
            prop_assert_eq!(seal(2, "a").open(node(1), &sealed, START), Err(Refused::Unauthenticated));
        }

        #[test]
        fn noise_is_never_believed(noise in prop::collection::vec(any::<u8>(), 0..100), signed: bool) {
            let data = if signed { [&MAGIC[..], &noise].concat() } else { noise };
            prop_assert_eq!(seal(2, "a").open(node(1), &data, START), Err(Refused::Unauthenticated));
            let _ = unsealed(&data);
        }
    }
}
