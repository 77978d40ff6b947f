//! Segments that are sent as one packet: the kernel cuts it, and what arrives is what was put together.

use etherparse::{IpFragOffset, IpNumber, Ipv4Header, Ipv6Header, TcpHeader, UdpHeader};
use overlane_dataplane::io::Port;
use overlane_dataplane::io::af_xdp::{AfXdpPort, Coalesce, OpenPort};
use overlane_dataplane::packet::frame::Frame;
use overlane_dataplane::packet::meta::{Meta, Origin};
use overlane_dataplane::packet::pool::FramePool;
use overlane_dataplane::packet::verdict::PortId;
use overlane_dataplane::stages::transmit::coalesce::Runs;

use super::harness::*;

/// Frames with these upper layers, and their IP headers right.
fn frames(is_v6: bool, protocol: IpNumber, uppers: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let one = |(id, upper): (u16, Vec<u8>)| {
        let mut frame = vec![0x02, 0, 0, 0, 0, 2, 0x02, 0, 0, 0, 0, 1];
        if is_v6 {
            frame.extend([0x86, 0xdd]);
            let ip = Ipv6Header {
                payload_length: upper.len() as u16,
                next_header: protocol,
                hop_limit: 64,
                source: [1; 16],
                destination: [2; 16],
                ..Ipv6Header::default()
            };
            frame.extend(ip.to_bytes());
        } else {
            frame.extend([8, 0]);
            let mut ip =
                Ipv4Header::new(upper.len() as u16, 64, protocol, [10, 0, 0, 1], [10, 0, 0, 2])
                    .unwrap();
            (ip.dont_fragment, ip.identification) = (true, 700 + id);
            ip.fragment_offset = IpFragOffset::ZERO;
            ip.header_checksum = ip.calc_header_checksum();
            frame.extend(ip.to_bytes());
        }
        [frame, upper].concat()
    };
    (0..).zip(uppers).map(one).collect()
}

fn payload(number: u32, len: usize) -> Vec<u8> {
    (0..len).map(|i| (i as u32 * 7 + number) as u8).collect()
}

/// Nine segments of a thousand bytes and one of 123, as TCP sends them.
fn tcp(is_v6: bool) -> Vec<Vec<u8>> {
    let one = |number: u32| {
        let payload = payload(number, if number == 9 { 123 } else { 1000 });
        let mut header = TcpHeader::new(1000, 80, 5000 + number * 1000, 99);
        (header.ack, header.acknowledgment_number, header.psh) = (true, 42, number == 9);
        header.checksum = if is_v6 {
            header.calc_checksum_ipv6_raw([1; 16], [2; 16], &payload).unwrap()
        } else {
            header.calc_checksum_ipv4_raw([10, 0, 0, 1], [10, 0, 0, 2], &payload).unwrap()
        };
        [header.to_bytes().to_vec(), payload].concat()
    };
    frames(is_v6, IpNumber::TCP, (0..10).map(one).collect())
}

/// Ten tunnel packets, the last one shorter. `sum`: with the checksum that a device writes.
fn tunnel(is_v6: bool, sum: bool) -> Vec<Vec<u8>> {
    let one = |number: u32| {
        let payload = payload(number, if number == 9 { 200 } else { 1100 });
        let mut header =
            UdpHeader { source_port: 50_000, destination_port: 4789, length: 0, checksum: 0 };
        header.length = (8 + payload.len()) as u16;
        if sum && is_v6 {
            header.checksum = header.calc_checksum_ipv6_raw([1; 16], [2; 16], &payload).unwrap();
        } else if sum {
            header.checksum =
                header.calc_checksum_ipv4_raw([10, 0, 0, 1], [10, 0, 0, 2], &payload).unwrap();
        }
        [header.to_bytes().to_vec(), payload].concat()
    };
    frames(is_v6, IpNumber::UDP, (0..10).map(one).collect())
}

/// Puts the frames together and sends them: how many frames each packet had, and whether it was taken.
fn send_together(
    port: &mut AfXdpPort,
    pool: &mut FramePool,
    frames: &[Vec<u8>],
    is_tunnel: bool,
) -> Vec<(usize, bool)> {
    let mut runs = Runs::default();
    let mut sent = Vec::new();
    let mut back: Vec<Frame> = Vec::new();
    let mut send = |run: &mut overlane_dataplane::stages::transmit::coalesce::Run| {
        let taken = run.segments().is_some_and(|s| port.send_segments(&s, run.frames()));
        sent.push((run.frames().len(), taken));
        back.extend(run.take());
    };
    for bytes in frames {
        let mut meta = Meta::new(PortId(0), Origin::Endpoint);
        // The packet that was there before a tunnel's headers came in front, 50 bytes at least.
        let before = if is_tunnel { 64 } else { 14 };
        (meta.hash, meta.ip_len) = (9, (bytes.len() - before) as u16);
        assert!(runs.add(frame_with(pool, bytes), &meta, &mut send).is_none());
    }
    runs.end(&mut send);
    back.into_iter().for_each(|frame| pool.give(frame));
    sent
}

#[test]
#[ignore = "needs root"]
fn the_kernel_cuts_what_was_put_together() {
    private_namespace();
    veth("a0", "a1");
    veth("b0", "b1");
    // As on a cable: checksums are finished before a packet leaves.
    run("ethtool -K a1 tx off");
    let umem = umem(512);
    let mut pool = FramePool::new(umem.depot().clone(), 64);
    let mut receiver = Steered::open(&umem, &OpenPort { fill_min: 64, ..OpenPort::veth("a0", 0) });
    receiver.port.recycle(&mut pool);
    let coalesce = Coalesce::TcpAndTunnels;
    let options = OpenPort { fill_min: 0, coalesce, ..OpenPort::veth("a1", 0) };
    let mut sender = AfXdpPort::open(&umem, &options).unwrap();
    assert!(sender.takes_segments());
    for is_v6 in [false, true] {
        for (frames, expected, is_tunnel) in
            [(tcp(is_v6), tcp(is_v6), false), (tunnel(is_v6, false), tunnel(is_v6, true), true)]
        {
            let sent = send_together(&mut sender, &mut pool, &frames, is_tunnel);
            assert_eq!(sent, [(10, true)]);
            let arrived = receiver.receive(&mut pool, 10);
            for (frame, expected) in arrived.iter().zip(&expected) {
                assert_eq!(frame.bytes(), &expected[..]);
            }
            arrived.into_iter().for_each(|frame| pool.give(frame));
        }
    }
    // Not told to, it takes no tunnel packets; and a device that is down loses them, counted.
    let options = OpenPort { fill_min: 0, coalesce: Coalesce::Tcp, ..OpenPort::veth("b0", 0) };
    let mut other = AfXdpPort::open(&umem, &options).unwrap();
    let frames = tunnel(false, false);
    assert_eq!(send_together(&mut other, &mut pool, &frames, true), [(10, false)]);
    run("ip link set a1 down");
    let frames = tcp(false);
    assert_eq!(send_together(&mut sender, &mut pool, &frames, false), [(10, true)]);
    assert_eq!(sender.tx_counters().dropped_by_device, 10);
    close_all(&umem, pool, vec![sender, other, receiver.port]);
}
