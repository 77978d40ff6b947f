//! Makes the pod's end of a veth pair send packets that AF_XDP can carry.
//!
//! Between two ends of a veth pair a kernel leaves checksums unfinished and hands over packets of
//! up to 64 KiB: nobody would see them on a wire. An AF_XDP socket does. So the pod's end is told
//! to finish its checksums and to cut its segments, and gets the overlay's MTU. It is in the
//! pod's network namespace, which is found by the number that the host's end knows it by.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};
use overlane_api::MacAddr;

use super::ethtool::Ethtool;
use super::interface::{Interface, InterfaceError};
use super::netlink::RouteSocket;

/// Where container runtimes and `ip netns` keep namespaces.
const NAMED_NAMESPACES: [&str; 3] = ["/run/netns", "/var/run/netns", "/run/docker/netns"];

/// The pod's end cannot be prepared.
#[derive(Debug, thiserror::Error)]
pub enum OffloadError {
    /// The host's end cannot be looked at.
    #[error(transparent)]
    Interface(#[from] InterfaceError),
    /// It is no veth.
    #[error("{name} has no other end: it is no veth")]
    NoPeer {
        /// The device.
        name: String,
    },
    /// The kernel refused a change in the pod's namespace.
    #[error("cannot {what} of the other end of {name}: {source}")]
    Peer {
        /// What was tried.
        what: &'static str,
        /// The host's end.
        name: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The thread that visits the namespace failed.
    #[error("the thread for the other end of {name} failed")]
    Thread {
        /// The host's end.
        name: String,
    },
}

/// What was found and done at the pod's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerReport {
    /// Its name there.
    pub name: String,
    /// Its address.
    pub mac: MacAddr,
    /// Its MTU now, bytes.
    pub mtu: u32,
    /// Features that were on and are off now, as `ethtool -k` names them.
    pub switched_off: Vec<String>,
    /// Features that should be off and are not: packets may carry wrong checksums.
    pub still_on: Vec<String>,
}

/// What was found and done at both ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OffloadsReport {
    /// Features of the host's end that were on and are off now.
    pub host_switched_off: Vec<String>,
    /// The pod's end; none: its namespace was not found, because nothing holds it that can be
    /// seen from here. Then `ethtool -K` in the pod has to do it.
    pub peer: Option<PeerReport>,
}

/// Switches off what AF_XDP cannot carry on both ends of the pair whose host's end is `name`,
/// and sets the pod's end's MTU to `mtu` bytes, if given. Doing it again changes nothing.
///
/// # Errors
/// [`OffloadError`]; a namespace that is not found is none, see [`OffloadsReport::peer`].
pub fn prepare_veth(name: &str, mtu: Option<u32>) -> Result<OffloadsReport, OffloadError> {
    let failed = |what| {
        let name = name.to_owned();
        move |source| OffloadError::Peer { what, name, source }
    };
    let host = Interface::find(name)?;
    let Some(peer) = host.peer else { return Err(OffloadError::NoPeer { name: name.into() }) };
    let (host_switched_off, _) =
        switch_off(name, merges_segments).map_err(failed("switch off receive offloads"))?;
    let namespace = match peer.namespace {
        None => None,
        Some(id) => match find_namespace(id).map_err(failed("look for the namespace"))? {
            None => return Ok(OffloadsReport { host_switched_off, peer: None }),
            found => found,
        },
    };
    // Threads cannot always leave a namespace that they entered, so a new one goes there.
    let visit = move || visit_peer(namespace.as_ref(), peer.index, mtu);
    let thread = std::thread::Builder::new().name("netns".into()).spawn(visit);
    let visited = thread
        .map_err(failed("visit the namespace"))?
        .join()
        .map_err(|_| OffloadError::Thread { name: name.into() })?;
    let peer = visited.map_err(|(what, source)| failed(what)(source))?;
    Ok(OffloadsReport { host_switched_off, peer: Some(peer) })
}

type Refused = (&'static str, io::Error);

/// Enters `namespace`, if given, and prepares device `index`.
fn visit_peer(
    namespace: Option<&File>,
    index: u32,
    mtu: Option<u32>,
) -> Result<PeerReport, Refused> {
    if let Some(namespace) = namespace {
        setns(namespace, CloneFlags::CLONE_NEWNET)
            .map_err(|e| ("enter the network namespace", e.into()))?;
    }
    let socket = RouteSocket::open().map_err(|e| ("open a netlink socket", e))?;
    let find = || socket.link_by_index(index).map_err(|e| ("read the state", e));
    let peer = Interface::from_link(&find()?);
    let (switched_off, still_on) = switch_off(&peer.name, leaves_work_to_hardware)
        .map_err(|e| ("switch off transmit offloads", e))?;
    if let Some(mtu) = mtu.filter(|&m| m != peer.mtu) {
        socket.set_mtu(index, mtu).map_err(|e| ("set the MTU", e))?;
    }
    let mtu = Interface::from_link(&find()?).mtu;
    Ok(PeerReport { name: peer.name, mac: peer.mac, mtu, switched_off, still_on })
}

/// Features by which the sender leaves checksums or segmentation to a device that is none.
fn leaves_work_to_hardware(feature: &str) -> bool {
    feature.starts_with("tx-checksum-")
        || (feature.starts_with("tx-") && feature.ends_with("segmentation"))
        || feature == "tx-gso-list"
}

/// Features by which the receiver makes several packets one.
fn merges_segments(feature: &str) -> bool {
    matches!(feature, "rx-gro" | "rx-gro-hw" | "rx-gro-list" | "rx-lro" | "rx-udp-gro-forwarding")
}

/// Switches the features off that `choose` picks: those that went off, and those that stayed on.
fn switch_off(name: &str, choose: fn(&str) -> bool) -> io::Result<(Vec<String>, Vec<String>)> {
    let ethtool = Ethtool::open(name)?;
    let chosen_and_on = || -> io::Result<Vec<String>> {
        let features = ethtool.features()?.into_iter();
        Ok(features.filter(|f| f.active && choose(&f.name)).map(|f| f.name).collect())
    };
    let before = chosen_and_on()?;
    if before.is_empty() {
        return Ok((before, Vec::new()));
    }
    ethtool.switch_off(choose)?;
    let after = chosen_and_on()?;
    let gone = before.into_iter().filter(|f| !after.contains(f)).collect();
    Ok((gone, after))
}

/// The namespace that the calling thread's knows as `id`.
fn find_namespace(id: i32) -> io::Result<Option<File>> {
    let socket = RouteSocket::open()?;
    let mut seen = HashSet::new();
    for path in candidates() {
        let Ok(file) = File::open(&path) else { continue };
        // Processes share namespaces: ask once for each.
        let Ok(metadata) = file.metadata() else { continue };
        if seen.insert((metadata.dev(), metadata.ino()))
            && matches!(socket.namespace_id(file.as_fd()), Ok(Some(found)) if found == id)
        {
            return Ok(Some(file));
        }
    }
    Ok(None)
}

/// Files that are or may be network namespaces: named ones first, then those of processes.
fn candidates() -> impl Iterator<Item = PathBuf> {
    let entries = |folder: &Path| {
        std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path())
    };
    let is_process = |path: &PathBuf| {
        path.file_name().is_some_and(|n| n.as_encoded_bytes().iter().all(u8::is_ascii_digit))
    };
    let named = NAMED_NAMESPACES.iter().flat_map(move |folder| entries(Path::new(folder)));
    let processes = entries(Path::new("/proc")).filter(is_process).map(|p| p.join("ns/net"));
    named.chain(processes)
}
