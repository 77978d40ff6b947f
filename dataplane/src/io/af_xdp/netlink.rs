//! Questions to the kernel by netlink, one at a time.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use netlink_sys::protocols::{NETLINK_GENERIC, NETLINK_ROUTE};
use netlink_sys::{Socket, SocketAddr};

fn open(protocol: isize) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

fn malformed<E: std::fmt::Display>(error: E) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("malformed netlink answer: {error}"))
}

/// Asks the network namespace of the calling thread about routes and links.
pub(super) struct RouteSocket(Socket);

impl RouteSocket {
    pub(super) fn open() -> io::Result<Self> {
        open(NETLINK_ROUTE).map(Self)
    }

    /// The answer to one request; none when the kernel only says that it is done.
    fn ask(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<Option<RouteNetlinkMessage>> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.0.send(&bytes, 0)?;
        let (answer, _) = self.0.recv_from_full()?;
        let answer =
            NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer).map_err(malformed)?;
        match answer.payload {
            NetlinkPayload::InnerMessage(message) => Ok(Some(message)),
            NetlinkPayload::Error(error) if error.code.is_some() => Err(error.to_io()),
            _ => Ok(None),
        }
    }

    /// A device by its name.
    pub(super) fn link_by_name(&self, name: &str) -> io::Result<LinkMessage> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.into()));
        self.link(message)
    }

    /// A device by its number.
    pub(super) fn link_by_index(&self, index: u32) -> io::Result<LinkMessage> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.link(message)
    }

    fn link(&self, message: LinkMessage) -> io::Result<LinkMessage> {
        match self.ask(RouteNetlinkMessage::GetLink(message), 0)? {
            Some(RouteNetlinkMessage::NewLink(link)) => Ok(link),
            _ => Err(malformed("no link in it")),
        }
    }

    /// Sets the MTU of device `index`, bytes.
    pub(super) fn set_mtu(&self, index: u32, mtu: u32) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes.push(LinkAttribute::Mtu(mtu));
        self.ask(RouteNetlinkMessage::SetLink(message), NLM_F_ACK).map(drop)
    }

    /// The number that this namespace knows the namespace behind `fd` by, if it has one.
    pub(super) fn namespace_id(&self, fd: std::os::fd::BorrowedFd<'_>) -> io::Result<Option<i32>> {
        let fd = u32::try_from(std::os::fd::AsRawFd::as_raw_fd(&fd)).map_err(malformed)?;
        let mut message = NsidMessage::default();
        message.attributes.push(NsidAttribute::Fd(fd));
        let Some(RouteNetlinkMessage::NewNsId(answer)) =
            self.ask(RouteNetlinkMessage::GetNsId(message), 0)?
        else {
            return Ok(None);
        };
        Ok(answer.attributes.iter().find_map(|a| match a {
            NsidAttribute::Id(id) if *id >= 0 => Some(*id),
            _ => None,
        }))
    }
}

/// One request of a generic netlink family, and what the answer's attributes are.
struct GenericSocket(Socket);

/// `struct nlmsghdr` and `struct genlmsghdr`, bytes.
const GENERIC_HEADERS: usize = 20;
/// Family number of the controller, which knows the others.
const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;

impl GenericSocket {
    /// Asks `family` with one attribute; the value of attribute `wanted` in the answer.
    fn ask(
        &self,
        family: u16,
        command: u8,
        (kind, value): (u16, &[u8]),
        wanted: u16,
    ) -> io::Result<Option<Vec<u8>>> {
        let padded = value.len().div_ceil(4) * 4;
        let len = GENERIC_HEADERS + 4 + padded;
        let mut request = Vec::with_capacity(len);
        request.extend(u32::try_from(len).map_err(malformed)?.to_ne_bytes());
        request.extend(family.to_ne_bytes());
        request.extend(NLM_F_REQUEST.to_ne_bytes());
        request.extend([0; 8]); // Sequence number and port.
        request.extend([command, 1, 0, 0]);
        request.extend(u16::try_from(4 + value.len()).map_err(malformed)?.to_ne_bytes());
        request.extend(kind.to_ne_bytes());
        request.extend(value);
        request.resize(len, 0);
        self.0.send(&request, 0)?;
        let (answer, _) = self.0.recv_from_full()?;
        parse_generic(&answer, wanted)
    }
}

/// The value of one attribute of a generic netlink answer.
fn parse_generic(answer: &[u8], wanted: u16) -> io::Result<Option<Vec<u8>>> {
    let u16_at = |at: usize| match answer.get(at..at + 2) {
        Some(bytes) => Ok(u16::from_ne_bytes([bytes[0], bytes[1]])),
        None => Err(malformed("it ends too soon")),
    };
    // NLMSG_ERROR: a negated errno follows the header.
    if u16_at(4)? == 2 {
        let code = answer.get(16..20).and_then(|b| b.try_into().ok()).map_or(0, i32::from_ne_bytes);
        return Err(io::Error::from_raw_os_error(-code));
    }
    let mut at = GENERIC_HEADERS;
    while at + 4 <= answer.len() {
        let (len, kind) = (usize::from(u16_at(at)?), u16_at(at + 2)?);
        let value = answer.get(at + 4..at + len).ok_or_else(|| malformed("a wrong length"))?;
        // The two high bits are flags.
        if kind & 0x3fff == wanted {
            return Ok(Some(value.to_vec()));
        }
        at += len.max(4).div_ceil(4) * 4;
    }
    Ok(None)
}

/// What a device can do with XDP, as bits of `enum netdev_xdp_act`; none before kernel 6.3.
pub(super) fn xdp_features(index: u32) -> io::Result<Option<u64>> {
    let socket = GenericSocket(open(NETLINK_GENERIC)?);
    let name = (CTRL_ATTR_FAMILY_NAME, &b"netdev\0"[..]);
    let family = match socket.ask(GENL_ID_CTRL, CTRL_CMD_GETFAMILY, name, CTRL_ATTR_FAMILY_ID) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
        other => other?,
    };
    let Some(family) = family.and_then(|f| f.try_into().ok()).map(u16::from_ne_bytes) else {
        return Ok(None);
    };
    let index = index.to_ne_bytes();
    let device = (NETDEV_A_DEV_IFINDEX, &index[..]);
    let features = socket.ask(family, NETDEV_CMD_DEV_GET, device, NETDEV_A_DEV_XDP_FEATURES)?;
    Ok(features.and_then(|f| f.try_into().ok()).map(u64::from_ne_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_and_broken_ones_refused() {
        let mut answer = vec![0; GENERIC_HEADERS];
        answer.extend([5, 0, 9, 0, 1, 0, 0, 0]);
        answer.extend([6, 0, 1, 0, 7, 8, 0, 0]);
        assert_eq!(parse_generic(&answer, 1).unwrap(), Some(vec![7, 8]));
        assert_eq!(parse_generic(&answer, 2).unwrap(), None);
        answer[20] = 3;
        assert!(parse_generic(&answer, 1).is_err());
        assert!(parse_generic(&[0; 4], 1).is_err());
        let mut refused = vec![0; 20];
        refused[4] = 2;
        refused[16..].copy_from_slice(&(-libc::ENOENT).to_ne_bytes());
        let error = parse_generic(&refused, 1).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
    }
}
