//! Scenarios of connections' states by name: part C of the table in `dataplane/tests/README.md`.
//! A closed or reset connection is remembered for 240 s here, an open one for 7,440 s.

use super::build::Packet;
use super::nat_rig::{ACK, FIN, RST, Rig, SYN, each, flagged, ports, tcp};

const SHORT: u64 = 240;

/// An open connection: as the pod sends, as it leaves.
fn open(rig: &mut Rig) -> (Packet, Packet) {
    let sent = rig.packet_of(0, 0, tcp(20_000, 443, SYN));
    let left = rig.connect(0, &sent);
    (sent, left)
}

/// The pod sends with these flags; it leaves as the connection does.
#[track_caller]
fn sends(rig: &mut Rig, (sent, left): &(Packet, Packet), flags: u8) {
    assert_eq!(rig.leaves(0, &flagged(sent, flags)), flagged(left, flags));
}

/// The remote end sends with these flags; the pod sees it.
#[track_caller]
fn answers(rig: &mut Rig, (sent, left): &(Packet, Packet), flags: u8) {
    rig.answers(0, sent, left, flags);
}

/// Late packets of both ends pass until the short time is over. Then nothing but a SYN is admitted.
#[track_caller]
fn is_closing(rig: &mut Rig, connection: &(Packet, Packet)) {
    rig.wait(SHORT - 10);
    sends(rig, connection, ACK);
    answers(rig, connection, ACK);
    rig.wait(SHORT - 10);
    assert_eq!(rig.bed.node.flows(), 1);
    rig.wait(12);
    assert_eq!(rig.bed.node.flows(), 0);
    let (sent, left) = connection;
    rig.is_unsolicited(&flagged(&left.reply(b""), ACK));
    for flags in [ACK, FIN | ACK, RST, SYN | ACK] {
        rig.bed.drops(
            &super::bed::pod(0),
            &flagged(sent, flags).frame(super::build::up(0)),
            "flow_unknown",
        );
    }
    rig.connect(0, sent);
}

#[test]
fn tcp_close_from_inside() {
    each(|rig| {
        let connection = open(rig);
        sends(rig, &connection, FIN | ACK);
        answers(rig, &connection, ACK);
        answers(rig, &connection, FIN | ACK);
        sends(rig, &connection, ACK);
        is_closing(rig, &connection);
    });
}

#[test]
fn tcp_close_from_outside() {
    each(|rig| {
        let connection = open(rig);
        answers(rig, &connection, FIN | ACK);
        sends(rig, &connection, ACK);
        sends(rig, &connection, FIN | ACK);
        answers(rig, &connection, ACK);
        is_closing(rig, &connection);
    });
}

#[test]
fn tcp_close_simultaneous() {
    each(|rig| {
        let connection = open(rig);
        sends(rig, &connection, FIN | ACK);
        answers(rig, &connection, FIN | ACK);
        sends(rig, &connection, ACK);
        answers(rig, &connection, ACK);
        is_closing(rig, &connection);
    });
}

/// A connection that only one side has closed stays as long as an open one.
#[test]
fn tcp_half_closed_lives_on() {
    each(|rig| {
        let connection = open(rig);
        sends(rig, &connection, FIN | ACK);
        answers(rig, &connection, ACK);
        rig.wait(7000);
        answers(rig, &connection, ACK);
        sends(rig, &connection, ACK);
    });
}

#[test]
fn tcp_rst_shortens() {
    for by_pod in [true, false] {
        each(|rig| {
            let connection = open(rig);
            if by_pod {
                sends(rig, &connection, RST);
            } else {
                answers(rig, &connection, RST);
            }
            rig.wait(SHORT - 5);
            assert_eq!(rig.bed.node.flows(), 1);
            rig.wait(7);
            assert_eq!(rig.bed.node.flows(), 0);
            let (sent, left) = &connection;
            rig.is_unsolicited(&flagged(&left.reply(b""), ACK));
            rig.bed.drops(
                &super::bed::pod(0),
                &flagged(sent, ACK).frame(super::build::up(0)),
                "flow_unknown",
            );
            rig.connect(0, sent);
        });
    }
}

/// A SYN opens it anew while it is still remembered.
#[test]
fn tcp_rst_then_syn_reopens() {
    each(|rig| {
        let connection = open(rig);
        answers(rig, &connection, RST);
        let (sent, _) = &connection;
        rig.connect(0, sent);
        rig.wait(7000);
        assert_eq!(rig.bed.node.flows(), 1);
    });
}

/// We differ (RFC 7857 section 2.2): whoever was reset sends no data, so that data says that the RST was
/// forged or lost, and the connection is as it was. From who has sent the RST itself it says nothing.
#[test]
fn tcp_rst_then_data() {
    each(|rig| {
        let connection = open(rig);
        answers(rig, &connection, RST);
        rig.wait(1);
        sends(rig, &connection, ACK);
        rig.wait(7000);
        sends(rig, &connection, ACK);
    });
}

#[test]
fn tcp_half_reopen_inside_only() {
    each(|rig| {
        let connection = open(rig);
        sends(rig, &connection, FIN | ACK);
        answers(rig, &connection, FIN | ACK);
        let left = rig.leaves(0, &connection.0);
        rig.wait(SHORT + 2);
        assert_eq!(rig.bed.node.flows(), 0, "a SYN alone is as short-lived");
        rig.is_unsolicited(&flagged(&left.reply(b""), SYN | ACK));
    });
}

#[test]
fn tcp_half_reopen_outside_only() {
    each(|rig| {
        let connection = open(rig);
        sends(rig, &connection, FIN | ACK);
        answers(rig, &connection, FIN | ACK);
        answers(rig, &connection, SYN);
        rig.wait(SHORT + 2);
        assert_eq!(rig.bed.node.flows(), 0);
        rig.is_unsolicited(&flagged(&connection.1.reply(b""), SYN));
    });
}

#[test]
fn tcp_reopen_both_sides() {
    each(|rig| {
        let connection = open(rig);
        sends(rig, &connection, FIN | ACK);
        answers(rig, &connection, FIN | ACK);
        // By the opener, with whatever port it gets.
        let left = rig.connect(0, &connection.0);
        rig.wait(SHORT + 10);
        let again = (connection.0.clone(), left);
        sends(rig, &again, ACK);
        answers(rig, &again, ACK);
        // And by the other end, which knows no other port.
        sends(rig, &again, FIN | ACK);
        answers(rig, &again, FIN | ACK);
        answers(rig, &again, SYN);
        sends(rig, &again, SYN | ACK);
        answers(rig, &again, ACK);
        rig.wait(SHORT + 10);
        sends(rig, &again, ACK);
        answers(rig, &again, ACK);
    });
}

#[test]
fn tcp_synack_retransmit() {
    // The ACK is lost before or behind this node.
    for ack_passes in [false, true] {
        each(|rig| {
            let sent = rig.packet_of(0, 0, tcp(20_000, 443, SYN));
            let left = rig.leaves(0, &sent);
            let connection = (sent, left);
            answers(rig, &connection, SYN | ACK);
            if ack_passes {
                sends(rig, &connection, ACK);
            }
            answers(rig, &connection, SYN | ACK);
            sends(rig, &connection, ACK);
            rig.wait(SHORT + 10);
            sends(rig, &connection, ACK);
            answers(rig, &connection, ACK);
            assert_eq!(ports(&connection.1).0, 20_000);
        });
    }
}
