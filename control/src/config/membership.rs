//! The part of the configuration that says which addresses are answered for on the node network,
//! and how nodes know of each other which of them live, as written.

/// Which addresses one live node answers for, as written. Only those inside `nodeCIDR` are meant:
/// all others come by routes that somebody else has made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Announce {
    /// Load balancers' addresses of services. Off: in a cloud they belong to its load balancer.
    #[serde(rename = "loadBalancerIPs")]
    pub load_balancer: bool,
    /// `externalIPs` of services, where `enableExternalIPs` is true.
    #[serde(rename = "externalIPs")]
    pub external: bool,
    /// Addresses of `gateways`.
    #[serde(rename = "natGatewayIPs")]
    pub nat_gateway: bool,
}

impl Default for Announce {
    fn default() -> Self {
        Self { load_balancer: false, external: false, nat_gateway: true }
    }
}

/// How control processes of nodes keep track of each other, as written.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Membership {
    /// UDP port, the same on all nodes.
    pub port: u64,
    /// How often another node is asked whether it lives, milliseconds.
    pub probe_interval_ms: u64,
    /// How long a node that does not answer may still say that it lives, milliseconds.
    pub suspicion_ms: u64,
    /// How long a node must have forwarded until it takes addresses back, seconds.
    pub take_back_after: u64,
    /// File with the key that messages are authenticated with, the same on all nodes; absent: they are not.
    pub key_file: Option<std::path::PathBuf>,
    /// With a key: are messages taken, too, that are not signed? For the time in which nodes get theirs.
    pub accept_unsigned: bool,
}

impl Default for Membership {
    fn default() -> Self {
        Self {
            port: 4254,
            probe_interval_ms: 500,
            suspicion_ms: 1000,
            take_back_after: 5,
            key_file: None,
            accept_unsigned: false,
        }
    }
}
