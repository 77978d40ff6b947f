//! Ports on which programs of the node itself listen: they are the host's, whatever the range of source
//! NAT says, and no flow leaves with one of them.

/// A set of ports.
#[derive(Clone, PartialEq, Eq)]
pub struct HostPorts(Box<[u64; WORDS]>);

const WORDS: usize = 1 << 10;

impl Default for HostPorts {
    fn default() -> Self {
        Self(Box::new([0; WORDS]))
    }
}

impl std::fmt::Debug for HostPorts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries((0..=u16::MAX).filter(|port| self.contains(*port))).finish()
    }
}

impl HostPorts {
    /// Does the host listen on `port` (host order)?
    #[inline]
    #[must_use]
    pub fn contains(&self, port: u16) -> bool {
        self.0[usize::from(port) / 64] >> (port % 64) & 1 != 0
    }
}

impl FromIterator<u16> for HostPorts {
    fn from_iter<T: IntoIterator<Item = u16>>(ports: T) -> Self {
        let mut set = Self::default();
        for port in ports {
            set.0[usize::from(port) / 64] |= 1 << (port % 64);
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_has_what_was_put_into_it() {
        let set: HostPorts = [0, 63, 64, 10_250, u16::MAX].into_iter().collect();
        for port in 0..=u16::MAX {
            assert_eq!(set.contains(port), [0, 63, 64, 10_250, u16::MAX].contains(&port));
        }
        assert_eq!(format!("{set:?}"), "{0, 63, 64, 10250, 65535}");
    }
}
