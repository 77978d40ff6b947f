//! The reasons why a configuration is refused. Each names fields and values, and what to do.

use ipnet::IpNet;
use overlane_api::Mode;

/// A field with its value, for messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// The field as the user wrote it.
    pub field: &'static str,
    /// Its value.
    pub value: String,
}

impl std::fmt::Display for Named {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.field, self.value)
    }
}

/// Names a value.
pub(super) fn named(field: &'static str, value: impl ToString) -> Named {
    Named { field, value: value.to_string() }
}

/// One reason why a configuration is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A field that must be written is empty.
    #[error("{field} is empty: {advice}")]
    Empty {
        /// The field.
        field: &'static str,
        /// What to write.
        advice: &'static str,
    },
    /// Two ranges share addresses.
    #[error("{first} overlaps {second}: choose ranges that share no address")]
    Overlap {
        /// One range.
        first: Named,
        /// The other.
        second: Named,
    },
    /// A range with bits set behind its prefix.
    #[error("{range} has address bits behind its prefix: write {network}")]
    HostBits {
        /// The range.
        range: Named,
        /// The network it lies in.
        network: IpNet,
    },
    /// A range or address that must lie inside another does not.
    #[error("{inner} is outside {outer}: {advice}")]
    Outside {
        /// What is outside.
        inner: Named,
        /// Of what.
        outer: Named,
        /// What to do.
        advice: &'static str,
    },
    /// An address that must not lie inside a range does.
    #[error("{inner} lies inside {outer}: {advice}")]
    Inside {
        /// The address.
        inner: Named,
        /// The range.
        outer: Named,
        /// What to do.
        advice: &'static str,
    },
    /// The first address of a service range is the API server's.
    #[error(
        "{dns} is the first address of {range}, which belongs to the service `kubernetes`: choose another, for example the tenth"
    )]
    DnsReserved {
        /// The DNS address.
        dns: Named,
        /// The service range.
        range: Named,
    },
    /// A service range that is too large.
    #[error(
        "{range} is larger than the largest service range, a /{limit}: use a prefix of {limit} or longer"
    )]
    ServiceTooLarge {
        /// The range.
        range: Named,
        /// Shortest prefix.
        limit: u8,
    },
    /// Pods' packets do not fit into the underlay's.
    #[error(
        "{pod} and {overhead} bytes that mode {mode} over IPv{family} adds do not fit {underlay}: set podMTU to {largest} or less, or raise underlayMTU"
    )]
    MtuDoesNotFit {
        /// podMTU.
        pod: Named,
        /// Bytes.
        overhead: u16,
        /// The mode.
        mode: Mode,
        /// 4 or 6.
        family: u8,
        /// underlayMTU.
        underlay: Named,
        /// Largest podMTU that fits, bytes.
        largest: u16,
    },
    /// An MTU that is too small for what it carries.
    #[error("{mtu} is too small for {carries}, which needs {least}: raise it")]
    MtuTooSmall {
        /// The MTU.
        mtu: Named,
        /// What it must carry.
        carries: Named,
        /// Bytes.
        least: u16,
    },
    /// A number outside its range.
    #[error("{number} is out of range: use {least} to {most}{}", .why.map(|why| format!(" ({why})")).unwrap_or_default())]
    Range {
        /// The number.
        number: Named,
        /// Smallest legal value.
        least: u64,
        /// Largest legal value.
        most: u64,
        /// The source of the limit.
        why: Option<&'static str>,
    },
    /// Two ranges share ports.
    #[error("{first} overlaps {second}: {advice}")]
    PortsOverlap {
        /// One range.
        first: Named,
        /// The other.
        second: Named,
        /// Why that is wrong and what to do.
        advice: &'static str,
    },
    /// A name that occurs twice.
    #[error("{value} is there twice: names are unique, change one of the two")]
    Twice {
        /// The name.
        value: Named,
    },
    /// A name of something that is not there.
    #[error("{value} is not one of {known}: write one of these, or add it")]
    Unknown {
        /// The name.
        value: Named,
        /// What there is.
        known: Named,
    },
    /// Two settings that exclude each other.
    #[error("{first} contradicts {second}: {advice}")]
    Contradiction {
        /// One setting.
        first: Named,
        /// The other.
        second: Named,
        /// What to do.
        advice: &'static str,
    },
    /// A path that depends on where a process was started.
    #[error("{path} is not an absolute path: write it from / on")]
    Relative {
        /// The path.
        path: Named,
    },
    /// Not the name of an interface.
    #[error(
        "{interface} is not an interface name: use 1 to {most} bytes without '/', ':' and spaces"
    )]
    Interface {
        /// The name.
        interface: Named,
        /// Longest name, bytes.
        most: usize,
    },
}
