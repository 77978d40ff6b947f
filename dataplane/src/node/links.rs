//! Interfaces of the node's namespace: which there are, and what happens to them.
//!
//! Endpoints may be told of before their veth exists; [`LinkWatch`] says when it has come.

use std::collections::HashMap;
use std::os::fd::BorrowedFd;

use netlink_packet_route::AddressFamily;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, State,
};
use nix::errno::Errno;
use overlane_api::MacAddr;

use super::netlink::{Events, Group, Heard, Netlink, NetlinkError};

/// Datagrams read by one [`LinkWatch::process`].
const DATAGRAMS_PER_CALL: usize = 256;

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Its index in this namespace.
    pub ifindex: u32,
    /// Its MAC; absent on interfaces that are not Ethernet.
    pub mac: Option<MacAddr>,
    /// Its MTU, bytes.
    pub mtu: u32,
    /// Is it administratively up?
    pub up: bool,
    /// Can it carry packets (operational state up, or a driver that does not say)?
    pub running: bool,
    /// Is it one end of a veth pair?
    pub is_veth: bool,
    /// The other end of a veth pair, as far as this namespace can see it.
    pub peer: Option<LinkPeer>,
}

/// Where the other end of a veth pair is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkPeer {
    /// Its index in its own namespace.
    pub ifindex: u32,
    /// This namespace's number for that namespace; absent: the same namespace.
    pub namespace: Option<i32>,
}

/// What happened to an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkEvent {
    /// It is there now.
    Added(Link),
    /// It is the same interface, with another MAC, MTU or state.
    Changed(Link),
    /// It is gone, or has another name now (then `Added` follows).
    Removed {
        /// The name it had.
        name: String,
        /// The index it had.
        ifindex: u32,
    },
}

/// Reads a link message; none for a bridge's view of its port, which is not about the interface.
fn read(message: &LinkMessage) -> Option<Link> {
    if message.header.interface_family != AddressFamily::Unspec {
        return None;
    }
    let up = message.header.flags.contains(LinkFlags::Up);
    let mut link = Link {
        name: String::new(),
        ifindex: message.header.index,
        mac: None,
        mtu: 0,
        up,
        running: up,
        is_veth: false,
        peer: None,
    };
    let (mut peer, mut namespace) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(octets) => {
                link.mac = <[u8; 6]>::try_from(octets.as_slice()).ok().map(MacAddr);
            }
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::OperState(state) => {
                link.running = up && matches!(state, State::Up | State::Unknown);
            }
            LinkAttribute::LinkInfo(infos) => {
                link.is_veth = infos.contains(&LinkInfo::Kind(InfoKind::Veth));
            }
            LinkAttribute::Link(ifindex) => peer = Some(*ifindex),
            LinkAttribute::LinkNetNsId(id) => namespace = Some(*id),
            _ => {}
        }
    }
    if link.is_veth {
        link.peer = peer.map(|ifindex| LinkPeer { ifindex, namespace });
    }
    (!link.name.is_empty()).then_some(link)
}

/// Asks for the interface `name`; none when there is none of that name.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn by_name(netlink: &mut Netlink, name: &str) -> Result<Option<Link>, NetlinkError> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    get(netlink, message, || format!("show interface {name}"))
}

/// Asks for the MAC of a veth's other end, wherever that is. None when there is no such
/// interface, it is no veth, or its other end cannot be seen from here.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn peer_mac(netlink: &mut Netlink, ifindex: u32) -> Result<Option<MacAddr>, NetlinkError> {
    let mut message = LinkMessage::default();
    message.header.index = ifindex;
    let near = get(netlink, message, || format!("show interface {ifindex}"))?;
    let Some(peer) = near.and_then(|link| link.peer) else { return Ok(None) };
    let mut message = LinkMessage::default();
    message.header.index = peer.ifindex;
    if let Some(namespace) = peer.namespace {
        message.attributes.push(LinkAttribute::IfNetnsId(namespace));
    }
    let far = get(netlink, message, || format!("show the other end of interface {ifindex}"))?;
    Ok(far.and_then(|link| link.mac))
}

fn get(
    netlink: &mut Netlink,
    message: LinkMessage,
    what: impl Fn() -> String,
) -> Result<Option<Link>, NetlinkError> {
    match netlink.request(RouteNetlinkMessage::GetLink(message), 0, what) {
        Err(error) if error.errno() == Some(Errno::ENODEV) => Ok(None),
        Err(error) => Err(error),
        Ok(answers) => Ok(answers.iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(message) => read(message),
            _ => None,
        })),
    }
}

/// Knows all interfaces of the namespace it was made in, and tells what happens to them.
#[derive(Debug)]
pub struct LinkWatch {
    requests: Netlink,
    events: Events,
    links: HashMap<u32, Link>,
    reread: bool,
    busy: bool,
}

impl LinkWatch {
    /// Starts watching. The interfaces that exist are the first events.
    ///
    /// # Errors
    /// When netlink sockets cannot be opened.
    pub fn open() -> Result<Self, NetlinkError> {
        let events = Events::subscribe(&[Group::Link])?;
        let requests = Netlink::open()?;
        Ok(Self { requests, events, links: HashMap::new(), reread: true, busy: true })
    }

    /// Readable when something happened.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.events.fd()
    }

    /// Is there more to do at once, whether or not [`Self::fd`] is readable?
    #[must_use]
    pub const fn is_busy(&self) -> bool {
        self.busy
    }

    /// The interface of this name, as of the last [`Self::process`].
    #[must_use]
    pub fn by_name(&self, name: &str) -> Option<&Link> {
        self.links.values().find(|link| link.name == name)
    }

    /// The interface of this index, as of the last [`Self::process`].
    #[must_use]
    pub fn by_index(&self, ifindex: u32) -> Option<&Link> {
        self.links.get(&ifindex)
    }

    /// Asks for the MAC of a veth's other end, see [`peer_mac`].
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn peer_mac(&mut self, ifindex: u32) -> Result<Option<MacAddr>, NetlinkError> {
        peer_mac(&mut self.requests, ifindex)
    }

    /// Reads what happened, a bounded amount; never waits for something to happen. After an
    /// overflow of the event socket all interfaces are read again and the differences told.
    ///
    /// # Errors
    /// When the kernel cannot be asked; the next call tries again.
    pub fn process(&mut self) -> Result<Vec<LinkEvent>, NetlinkError> {
        let mut told = Vec::new();
        self.busy = true;
        for _ in 0..DATAGRAMS_PER_CALL {
            match self.events.hear()? {
                Heard::Changes(changes) => {
                    for change in changes {
                        self.take(&change, &mut told);
                    }
                }
                Heard::Lost => self.reread = true,
                Heard::Quiet => {
                    self.busy = false;
                    break;
                }
            }
        }
        // Not before the socket is empty: until then the kernel goes on throwing news away.
        if self.reread && !self.busy {
            self.read_all(&mut told)?;
            self.reread = false;
        }
        Ok(told)
    }

    fn take(&mut self, change: &RouteNetlinkMessage, told: &mut Vec<LinkEvent>) {
        match change {
            RouteNetlinkMessage::NewLink(message) => {
                if let Some(link) = read(message) {
                    self.set(link, told);
                }
            }
            RouteNetlinkMessage::DelLink(message)
                if message.header.interface_family == AddressFamily::Unspec =>
            {
                self.remove(message.header.index, told);
            }
            _ => {}
        }
    }

    fn set(&mut self, link: Link, told: &mut Vec<LinkEvent>) {
        match self.links.get(&link.ifindex) {
            Some(known) if *known == link => return,
            Some(known) if known.name == link.name => told.push(LinkEvent::Changed(link.clone())),
            Some(known) => {
                told.push(LinkEvent::Removed { name: known.name.clone(), ifindex: known.ifindex });
                told.push(LinkEvent::Added(link.clone()));
            }
            None => told.push(LinkEvent::Added(link.clone())),
        }
        self.links.insert(link.ifindex, link);
    }

    fn remove(&mut self, ifindex: u32, told: &mut Vec<LinkEvent>) {
        if let Some(Link { name, ifindex, .. }) = self.links.remove(&ifindex) {
            told.push(LinkEvent::Removed { name, ifindex });
        }
    }

    fn read_all(&mut self, told: &mut Vec<LinkEvent>) -> Result<(), NetlinkError> {
        let question = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let answers = self.requests.dump(&question, || "list interfaces".into())?;
        let present: HashMap<u32, Link> = answers
            .iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewLink(message) => read(message),
                _ => None,
            })
            .map(|link| (link.ifindex, link))
            .collect();
        let gone: Vec<u32> =
            self.links.keys().copied().filter(|index| !present.contains_key(index)).collect();
        for ifindex in gone {
            self.remove(ifindex, told);
        }
        for link in present.into_values() {
            self.set(link, told);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(index: u32, name: &str, mtu: u32) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Up;
        message.attributes = vec![
            LinkAttribute::IfName(name.into()),
            LinkAttribute::Mtu(mtu),
            LinkAttribute::Address(vec![2, 0, 0, 0, 0, 1]),
            LinkAttribute::OperState(State::Down),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth)]),
            LinkAttribute::Link(7),
            LinkAttribute::LinkNetNsId(3),
        ];
        message
    }

    #[test]
    fn links_are_read() {
        let link = read(&message(5, "pod1", 1450)).unwrap();
        assert_eq!((link.name.as_str(), link.ifindex, link.mtu), ("pod1", 5, 1450));
        assert_eq!(link.mac, Some(MacAddr([2, 0, 0, 0, 0, 1])));
        assert_eq!((link.up, link.running, link.is_veth), (true, false, true));
        assert_eq!(link.peer, Some(LinkPeer { ifindex: 7, namespace: Some(3) }));
    }

    #[test]
    fn a_bridge_that_lets_a_port_go_does_not_remove_the_interface() {
        let mut watch = LinkWatch::open().unwrap();
        watch.reread = false;
        let mut told = Vec::new();
        watch.take(&RouteNetlinkMessage::NewLink(message(50_000, "pod1", 1450)), &mut told);
        assert!(matches!(told.as_slice(), [LinkEvent::Added(_)]));
        told.clear();
        let mut port = message(50_000, "pod1", 1450);
        port.header.interface_family = AddressFamily::Bridge;
        watch.take(&RouteNetlinkMessage::DelLink(port), &mut told);
        assert_eq!(told, []);
        watch.take(&RouteNetlinkMessage::NewLink(message(50_000, "pod2", 1450)), &mut told);
        assert!(matches!(told.as_slice(), [LinkEvent::Removed { .. }, LinkEvent::Added(_)]));
        told.clear();
        watch.take(&RouteNetlinkMessage::NewLink(message(50_000, "pod2", 1400)), &mut told);
        assert!(matches!(told.as_slice(), [LinkEvent::Changed(link)] if link.mtu == 1400));
        told.clear();
        watch.take(&RouteNetlinkMessage::DelLink(message(50_000, "pod2", 1400)), &mut told);
        assert_eq!(told, [LinkEvent::Removed { name: "pod2".into(), ifindex: 50_000 }]);
    }

    #[test]
    fn existing_interfaces_are_the_first_events() {
        let mut watch = LinkWatch::open().unwrap();
        assert!(watch.is_busy());
        let told = watch.process().unwrap();
        let lo = |event: &LinkEvent| matches!(event, LinkEvent::Added(link) if link.name == "lo");
        assert!(told.iter().any(lo), "{told:?}");
        assert_eq!(watch.by_name("lo").unwrap().ifindex, 1);
        assert!(by_name(&mut Netlink::open().unwrap(), "none-such").unwrap().is_none());
    }
}
