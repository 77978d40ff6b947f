//! Numbers that nobody can foretell who does not know the key: SipHash-2-4 of a counter.
//!
//! External ports are seen by everybody a pod talks to; from those of today nobody must be able to
//! tell those of tomorrow (RFC 6056 section 3, RFC 7857 section 9). SipHash is made for that; it takes
//! about 10 ns here, a small part of what setting up a flow takes.

/// A stream of random numbers.
#[derive(Debug, Clone)]
pub struct Random {
    key: [u64; 2],
    /// Numbers drawn.
    counter: u64,
    /// Numbers that were foreseen and are not drawn yet, each at its count modulo [`AHEAD`].
    foreseen: [u64; AHEAD],
    /// Up to this count.
    foreseen_to: u64,
}

/// Numbers that can be foreseen: as many as a vector has packets.
const AHEAD: usize = 64;

impl Random {
    /// `key` is to be random and secret, and another for each worker.
    #[must_use]
    pub fn new(key: [u64; 2]) -> Self {
        Self { key, counter: 0, foreseen: [0; AHEAD], foreseen_to: 0 }
    }

    /// The number after the next `count`, which stays the same when its turn comes. None: too far ahead.
    #[inline]
    #[allow(clippy::cast_possible_truncation, reason = "the remainder is below 64")]
    pub fn foresee(&mut self, count: usize) -> Option<u64> {
        if count >= AHEAD {
            return None;
        }
        let at = self.counter + 1 + count as u64;
        for next in self.foreseen_to.max(self.counter) + 1..=at {
            self.foreseen[next as usize % AHEAD] = siphash(self.key, next);
        }
        self.foreseen_to = self.foreseen_to.max(at);
        Some(self.foreseen[at as usize % AHEAD])
    }

    /// The next number.
    #[inline]
    #[allow(clippy::cast_possible_truncation, reason = "the remainder is below 64")]
    pub fn number(&mut self) -> u64 {
        self.counter += 1;
        if self.counter <= self.foreseen_to {
            return self.foreseen[self.counter as usize % AHEAD];
        }
        siphash(self.key, self.counter)
    }

    /// A number below `limit`; 0 for a limit of 0.
    #[inline]
    pub fn below(&mut self, limit: u32) -> u32 {
        below(self.number(), limit)
    }
}

/// A random number, scaled to less than `limit`; 0 for a limit of 0. The bias is below one in 2^32.
#[inline]
#[must_use]
#[allow(clippy::cast_possible_truncation, reason = "below a limit of 32 bits")]
pub const fn below(number: u64, limit: u32) -> u32 {
    (((number >> 32) * limit as u64) >> 32) as u32
}

/// One SipRound ("SipHash: a fast short-input PRF", section 2.4).
#[inline]
const fn round(v: [u64; 4]) -> [u64; 4] {
    let [a, b, c, d] = v;
    let a = a.wrapping_add(b);
    let b = b.rotate_left(13) ^ a;
    let a = a.rotate_left(32);
    let c = c.wrapping_add(d);
    let d = d.rotate_left(16) ^ c;
    let a = a.wrapping_add(d);
    let d = d.rotate_left(21) ^ a;
    let c = c.wrapping_add(b);
    let b = b.rotate_left(17) ^ c;
    [a, b, c.rotate_left(32), d]
}

/// SipHash-2-4 of the 8 bytes of a number, least significant first.
const fn siphash(key: [u64; 2], number: u64) -> u64 {
    let mut v = [
        key[0] ^ 0x736f_6d65_7073_6575,
        key[1] ^ 0x646f_7261_6e64_6f6d,
        key[0] ^ 0x6c79_6765_6e65_7261,
        key[1] ^ 0x7465_6462_7974_6573,
    ];
    // The message, then an empty last word with the length in its top byte.
    let words = [number, 8 << 56];
    let mut at = 0;
    while at < 2 {
        v[3] ^= words[at];
        v = round(round(v));
        v[0] ^= words[at];
        at += 1;
    }
    v[2] ^= 0xff;
    v = round(round(round(round(v))));
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_siphash() {
        // Appendix A of the paper has the key 00 01 .. 0f; this is the reference implementation's
        // vector for the message 00 01 .. 07.
        let key = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];
        assert_eq!(siphash(key, 0x0706_0504_0302_0100), 0x93f5_f579_9a93_2462);
    }

    #[test]
    fn what_is_foreseen_comes_and_changes_nothing() {
        let (mut one, mut other) = (Random::new([1, 2]), Random::new([1, 2]));
        for round in 0..500_usize {
            let ahead = (0..round % 70).map(|count| other.foresee(count)).collect::<Vec<_>>();
            assert!(ahead.iter().take(AHEAD).all(Option::is_some));
            assert!(ahead.iter().skip(AHEAD).all(Option::is_none));
            for count in 0..round % 41 {
                let number = one.number();
                assert_eq!(other.number(), number);
                if let Some(Some(foreseen)) = ahead.get(count) {
                    assert_eq!(*foreseen, number);
                }
            }
        }
    }

    #[test]
    fn numbers_below_a_limit_reach_all_of_them() {
        let mut random = Random::new([1, 2]);
        let mut hits = [0_u32; 100];
        for _ in 0..100_000 {
            hits[random.below(100) as usize] += 1;
        }
        assert!(hits.iter().all(|count| (800..1200).contains(count)), "{hits:?}");
        assert_eq!(random.below(0), 0);
    }

    #[test]
    fn other_keys_other_numbers() {
        let numbers = |key| {
            let mut random = Random::new(key);
            (0..16).map(|_| random.number()).collect::<Vec<_>>()
        };
        assert_eq!(numbers([1, 2]), numbers([1, 2]));
        assert_ne!(numbers([1, 2]), numbers([1, 3]));
        assert_ne!(numbers([1, 2]), numbers([2, 2]));
    }
}
