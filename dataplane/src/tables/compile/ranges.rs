//! The peers' pod ranges in order, so that an overlap is found without asking every peer.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

/// Ranges and whose they are.
#[derive(Debug, Default)]
pub(super) struct Ranges {
    /// By first address and prefix length.
    owners: BTreeMap<(IpAddr, u8), String>,
    /// How many have a prefix length.
    lengths: BTreeMap<u8, usize>,
}

impl Ranges {
    /// `owner` has `range`.
    pub(super) fn insert(&mut self, range: IpNet, owner: &str) {
        let key = (range.network(), range.prefix_len());
        if self.owners.insert(key, owner.to_owned()).is_none() {
            *self.lengths.entry(range.prefix_len()).or_default() += 1;
        }
    }

    /// Nobody has `range` any more.
    pub(super) fn remove(&mut self, range: IpNet) {
        let len = range.prefix_len();
        if self.owners.remove(&(range.network(), len)).is_none() {
            return;
        }
        if let Some(count) = self.lengths.get_mut(&len) {
            *count -= 1;
            if *count == 0 {
                self.lengths.remove(&len);
            }
        }
    }

    /// Who, other than `except`, has a range that overlaps `range`, and which.
    pub(super) fn overlapping(&self, range: IpNet, except: &str) -> Option<(String, IpNet)> {
        self.around(range, except).or_else(|| self.within(range, except))
    }

    /// A range that contains `range`, or is the same.
    fn around(&self, range: IpNet, except: &str) -> Option<(String, IpNet)> {
        self.lengths.range(..=range.prefix_len()).find_map(|(len, _)| {
            let net = IpNet::new(range.network(), *len).ok()?.trunc();
            let owner = self.owners.get(&(net.network(), *len))?;
            (owner != except).then(|| (owner.clone(), net))
        })
    }

    /// A range that `range` contains.
    fn within(&self, range: IpNet, except: &str) -> Option<(String, IpNet)> {
        let inside = (range.network(), 0)..=(range.broadcast(), u8::MAX);
        self.owners.range(inside).find_map(|((first, len), owner)| {
            let net = IpNet::new(*first, *len).ok()?;
            (owner != except && range.contains(&net)).then(|| (owner.clone(), net))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range() -> impl Strategy<Value = IpNet> {
        // Few addresses, so that many overlap.
        (0_u32..64, 24_u8..=32).prop_map(|(host, len)| {
            IpNet::new(std::net::Ipv4Addr::from_bits(0x0af4_0000 + host * 8).into(), len)
                .unwrap()
                .trunc()
        })
    }

    proptest! {
        #[test]
        fn agrees_with_asking_every_peer(
            steps in prop::collection::vec((range(), 0_usize..5, any::<bool>()), 0..60)
        ) {
            let mut ranges = Ranges::default();
            let mut all: Vec<(IpNet, String)> = Vec::new();
            for (range, owner, remove) in steps {
                let owner = format!("peer-{owner}");
                let expected = all.iter().any(|(other, whose)| {
                    *whose != owner && (other.contains(&range) || range.contains(other))
                });
                let found = ranges.overlapping(range, &owner);
                prop_assert_eq!(found.is_some(), expected);
                if let Some((whose, other)) = found {
                    prop_assert!(all.contains(&(other, whose)));
                }
                if remove {
                    all.retain(|(other, _)| *other != range);
                    ranges.remove(range);
                } else if !expected {
                    all.retain(|(other, _)| *other != range);
                    all.push((range, owner.clone()));
                    ranges.insert(range, &owner);
                }
            }
        }
    }
}
