//! Traffic of every kind, for tests that compare generators.

use std::net::IpAddr;

use overlane_api::{MacAddr, Mode, Vni};

use crate::traffic::{Order, Protocol, Side, Size, Traffic, Tunnel};

fn side(last: u8, text: &str) -> Side {
    let address: IpAddr = text.parse().unwrap();
    let mac = MacAddr([2, 0, 0, 0, 0, last]);
    Side { mac, address, addresses: 50, port: 2000, ports: 40 }
}

/// Both families, protocols, all orders, sizes of either parity, tags and tunnels.
pub fn samples() -> Vec<Traffic> {
    let v4 = Traffic::new(side(1, "10.1.255.250"), side(2, "10.2.0.1"));
    let v6 = Traffic::new(side(1, "fd00:1:2:3::ffff:ff00"), side(2, "fd00:1:2:4::1"));
    let tunnel = |mode, from: &str, to: &str| {
        let (a, b) = (MacAddr([6; 6]), MacAddr([8; 6]));
        let addresses = (from.parse().unwrap(), to.parse().unwrap());
        let port = if mode == Mode::Geneve { 6081 } else { 4789 };
        Some(Tunnel { mode, vni: Vni::new(77).unwrap(), macs: (a, b), addresses, port })
    };
    let over_v4 = |mode| tunnel(mode, "172.16.0.1", "172.16.0.2");
    let over_v6 = |mode| tunnel(mode, "fd00:20::1", "fd00:20::2");
    let mut samples = Vec::new();
    for base in [v4, v6] {
        let base = Traffic { flows: 100_000, ..base };
        for size in ["64", "65", "85", "333", "1518", "imix"] {
            samples.push(Traffic { size: size.parse().unwrap(), ..base.clone() });
        }
        samples.push(Traffic { protocol: Protocol::TcpSyn, ..base.clone() });
        samples.push(Traffic { order: Order::InOrder, flows: 7, ..base.clone() });
        samples.push(Traffic { order: Order::Zipf, ..base.clone() });
        samples.push(Traffic { stamp: false, ..base.clone() });
        samples.push(Traffic { flows: 1, vlan: Some(99), ..base.clone() });
        samples.push(Traffic { vlan: Some(4094), size: Size::Imix, ..base.clone() });
        for tunnel in [over_v4(Mode::Geneve), over_v4(Mode::Vxlan), over_v6(Mode::Geneve)] {
            samples.push(Traffic { tunnel, size: Size::Imix, ..base.clone() });
            samples.push(Traffic { tunnel, size: Size::Bytes(151), ..base.clone() });
            samples.push(Traffic { tunnel, protocol: Protocol::TcpSyn, ..base.clone() });
        }
    }
    samples
}
