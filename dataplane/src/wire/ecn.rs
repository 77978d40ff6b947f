//! Explicit congestion notification across tunnels (RFC 6040).

/// The two ECN bits of an IP header (RFC 3168 section 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Ecn {
    /// The transport does not do ECN.
    NotEct = 0b00,
    /// ECN-capable, codepoint 1.
    Ect1 = 0b01,
    /// ECN-capable, codepoint 0.
    Ect0 = 0b10,
    /// Congestion was experienced.
    Ce = 0b11,
}

impl Ecn {
    /// The low two bits of `tos`, the IPv4 TOS byte or the IPv6 traffic class.
    #[inline]
    #[must_use]
    pub const fn from_tos(tos: u8) -> Self {
        match tos & 0b11 {
            0b00 => Self::NotEct,
            0b01 => Self::Ect1,
            0b10 => Self::Ect0,
            _ => Self::Ce,
        }
    }

    /// The two bits, 0 to 3.
    #[inline]
    #[must_use]
    pub const fn bits(self) -> u8 {
        self as u8
    }
}

/// ECN of the outer header of a packet that enters the tunnel: normal mode, outer = inner (RFC 6040
/// section 4.1).
#[inline]
#[must_use]
pub const fn encapsulate(inner: Ecn) -> Ecn {
    inner
}

/// What becomes of a packet that leaves the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decapsulated {
    /// It goes on.
    Forward {
        /// ECN it goes on with.
        ecn: Ecn,
        /// Inner and outer field are a combination that no correct sender makes: count it.
        anomaly: bool,
    },
    /// It must be dropped: congestion was experienced and the transport would not understand.
    Drop,
}

/// Combines the inner and the outer field at the tunnel's end (RFC 6040 section 4.2, figure 4).
#[inline]
#[must_use]
pub const fn decapsulate(inner: Ecn, outer: Ecn) -> Decapsulated {
    let (ecn, anomaly) = match (inner, outer) {
        (Ecn::NotEct, Ecn::Ce) => return Decapsulated::Drop,
        (Ecn::NotEct, Ecn::NotEct) => (Ecn::NotEct, false),
        (Ecn::NotEct, Ecn::Ect0 | Ecn::Ect1) => (Ecn::NotEct, true),
        (Ecn::Ect0, Ecn::NotEct | Ecn::Ect0) => (Ecn::Ect0, false),
        (Ecn::Ect0 | Ecn::Ect1, Ecn::Ect1) | (Ecn::Ect1, Ecn::NotEct | Ecn::Ect0) => {
            (Ecn::Ect1, false)
        }
        (Ecn::Ce, Ecn::Ect1) => (Ecn::Ce, true),
        (Ecn::Ect0 | Ecn::Ect1 | Ecn::Ce, Ecn::Ce) | (Ecn::Ce, Ecn::NotEct | Ecn::Ect0) => {
            (Ecn::Ce, false)
        }
    };
    Decapsulated::Forward { ecn, anomaly }
}

#[cfg(test)]
mod tests {
    use super::Ecn::{Ce, Ect0, Ect1, NotEct};
    use super::*;

    #[test]
    fn bits_are_the_low_two() {
        for tos in 0..=u8::MAX {
            assert_eq!(Ecn::from_tos(tos).bits(), tos & 3);
        }
        assert_eq!([NotEct, Ect1, Ect0, Ce].map(Ecn::bits), [0, 1, 2, 3]);
    }

    #[test]
    fn encapsulation_copies() {
        for ecn in [NotEct, Ect0, Ect1, Ce] {
            assert_eq!(encapsulate(ecn), ecn);
        }
    }

    #[test]
    fn decapsulation_is_figure_4_of_rfc_6040() {
        // One row for each inner field; columns are outer Not-ECT, ECT(0), ECT(1), CE.
        let table = [
            (NotEct, [Some((NotEct, false)), Some((NotEct, true)), Some((NotEct, true)), None]),
            (Ect0, [(Ect0, false), (Ect0, false), (Ect1, false), (Ce, false)].map(Some)),
            (Ect1, [(Ect1, false), (Ect1, false), (Ect1, false), (Ce, false)].map(Some)),
            (Ce, [(Ce, false), (Ce, false), (Ce, true), (Ce, false)].map(Some)),
        ];
        for (inner, row) in table {
            for (outer, cell) in [NotEct, Ect0, Ect1, Ce].into_iter().zip(row) {
                let wanted = cell.map_or(Decapsulated::Drop, |(ecn, anomaly)| {
                    Decapsulated::Forward { ecn, anomaly }
                });
                assert_eq!(decapsulate(inner, outer), wanted, "inner {inner:?} outer {outer:?}");
            }
        }
    }
}
