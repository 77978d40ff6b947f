//! The far end of a round trip: addresses and ports change places, outside and inside of a tunnel,
//! and the frame goes back.
//!
//! Of a tunnel packet the outer ports stay as they are: the destination port is what it is known
//! by, the source port only spreads flows (RFC 8926 section 3.3, RFC 7348 section 5). No checksum
//! changes, as a sum does not care which of its terms comes first.

use overlane_dataplane::wire::{protocol, tcp, udp};
use serde::{Deserialize, Serialize};

use crate::layers::{Layer, layers};

/// Bytes of a MAC address.
const MAC: usize = 6;

/// Turns a frame round; false: it is no UDP or TCP packet of IPv4 or IPv6, and is as it was.
pub fn turn(frame: &mut [u8]) -> bool {
    let layers = layers(frame);
    let is_known = |layer: &Layer| [protocol::UDP, protocol::TCP].contains(&layer.protocol);
    if layers.is_empty() || !layers.iter().all(is_known) {
        return false;
    }
    let last = layers.len() - 1;
    for (at, layer) in layers.iter().enumerate() {
        swap(frame, layer.ethernet, MAC);
        let (addresses, length) = if layer.is_v6 { (8, 16) } else { (12, 4) };
        swap(frame, layer.ip + addresses, length);
        if at == last {
            swap(frame, layer.transport, 2);
        }
    }
    true
}

/// Lets the `length` bytes at `at` and those behind them change places.
fn swap(frame: &mut [u8], at: usize, length: usize) {
    if let Some(both) = frame.get_mut(at..at + 2 * length) {
        let (one, other) = both.split_at_mut(length);
        one.swap_with_slice(other);
    }
}

/// Least bytes behind the start of a transport header, for its ports to be there.
const _: () = assert!(udp::HEADER_LEN >= 4 && tcp::MIN_HEADER_LEN >= 4);

/// What was reflected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Reflected {
    /// Frames that came.
    pub received: u64,
    /// Frames that went back.
    pub sent: u64,
    /// Frames that are no UDP or TCP packets, dropped.
    pub other: u64,
    /// Frames that the interface had no room for, dropped.
    pub full: u64,
    /// Frames that the kernel dropped in front of the reflector: it was too slow.
    pub kernel_dropped: u64,
}

impl Reflected {
    /// As text.
    #[must_use]
    pub fn table(&self) -> String {
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::presets::NOTHING);
        table.set_header(["RECEIVED", "SENT BACK", "OTHER", "NO ROOM", "DROPPED BY KERNEL"]);
        let columns = [self.received, self.sent, self.other, self.full, self.kernel_dropped];
        table.add_row(columns.map(|count| count.to_string()));
        table.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::receive::Analysis;
    use crate::traffic::{Traffic, Tunnel};
    use crate::writer::FrameWriter;
    use crate::writer_samples::samples;

    fn frame(traffic: &Traffic) -> Vec<u8> {
        let mut frame = vec![0; 2048];
        let len = FrameWriter::new(traffic).unwrap().next(&mut frame, 7).unwrap();
        frame.truncate(len);
        frame
    }

    /// The traffic of the other direction.
    fn back(traffic: &Traffic) -> Traffic {
        let turned = |t: &Tunnel| Tunnel {
            macs: (t.macs.1, t.macs.0),
            addresses: (t.addresses.1, t.addresses.0),
            ..*t
        };
        let (source, destination) = (traffic.destination, traffic.source);
        Traffic {
            source,
            destination,
            tunnel: traffic.tunnel.as_ref().map(turned),
            ..traffic.clone()
        }
    }

    #[test]
    fn a_turned_frame_is_one_of_the_other_direction() {
        for traffic in samples() {
            // One address and port on each side, so that the one flow is the same both ways.
            let one = Traffic { flows: 1, ..traffic };
            let (sent, mut turned) = (frame(&one), frame(&one));
            assert!(turn(&mut turned));
            assert_ne!(sent, turned);
            assert_eq!(turned, frame(&back(&one)), "{one:?}");
            let mut analysis = Analysis::new(true).unwrap();
            analysis.see(&turned, 10);
            assert_eq!(analysis.report(Default::default()).corrupt, 0);
            assert!(turn(&mut turned));
            assert_eq!(sent, turned);
        }
    }

    #[test]
    fn what_is_not_understood_stays_as_it_is() {
        let mut arp = vec![0xff; 60];
        arp[12..14].copy_from_slice(&[8, 6]);
        let before = arp.clone();
        assert!(!turn(&mut arp) && arp == before);
        let mut cut = frame(&samples()[0]);
        cut.truncate(40);
        let before = cut.clone();
        assert!(!turn(&mut cut) && cut == before);
    }
}
