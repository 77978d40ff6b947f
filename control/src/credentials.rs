//! Who may talk to a socket: root, and the members of one configured group.

use std::ffi::CString;
use std::os::unix::net::UnixStream;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::{Gid, Group, Uid, User, getgrouplist};

/// Why a peer may not talk to the socket, or a group cannot be configured.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// The kernel did not say who the peer is.
    #[error("cannot read who connected: {0}")]
    Unknown(nix::Error),
    /// The peer is neither root nor in the group.
    #[error("user {uid} may not use this socket: it is for root{}", .group.map(|gid| format!(" and members of group {gid}")).unwrap_or_default())]
    Denied {
        /// The peer.
        uid: u32,
        /// The configured group.
        group: Option<u32>,
    },
    /// No such group.
    #[error("there is no group {0:?}: create it (groupadd --system {0}), or correct --group")]
    NoGroup(String),
    /// The group database cannot be read.
    #[error("cannot look up group {name:?}: {source}")]
    Lookup {
        /// The group.
        name: String,
        /// The cause.
        source: nix::Error,
    },
}

/// Who may talk to a socket.
#[derive(Debug, Clone, Copy)]
pub struct Allowed {
    group: Option<Gid>,
}

impl Allowed {
    /// Root, and the members of the group `name` (a name or a number) if there is one.
    ///
    /// # Errors
    /// [`CredentialError::NoGroup`] when it does not exist.
    pub fn new(name: Option<&str>) -> Result<Self, CredentialError> {
        let Some(name) = name else { return Ok(Self { group: None }) };
        let lookup = |source| CredentialError::Lookup { name: name.to_owned(), source };
        let gid = match Group::from_name(name).map_err(lookup)? {
            Some(group) => Some(group.gid),
            None => name.parse().ok().map(Gid::from_raw),
        };
        let group = Some(gid.ok_or_else(|| CredentialError::NoGroup(name.to_owned()))?);
        Ok(Self { group })
    }

    /// The group that the socket's file should have.
    #[must_use]
    pub const fn group(&self) -> Option<Gid> {
        self.group
    }

    /// May the process at the other end of `stream` talk to us?
    ///
    /// # Errors
    /// [`CredentialError::Denied`] names the user.
    pub fn check(&self, stream: &UnixStream) -> Result<(), CredentialError> {
        let peer = getsockopt(stream, PeerCredentials).map_err(CredentialError::Unknown)?;
        self.check_ids(Uid::from_raw(peer.uid()), Gid::from_raw(peer.gid()))
    }

    fn check_ids(&self, uid: Uid, gid: Gid) -> Result<(), CredentialError> {
        let member = |group| gid == group || is_supplementary(uid, gid, group);
        if uid.is_root() || self.group.is_some_and(member) {
            return Ok(());
        }
        Err(CredentialError::Denied { uid: uid.as_raw(), group: self.group.map(Gid::as_raw) })
    }
}

fn is_supplementary(uid: Uid, gid: Gid, group: Gid) -> bool {
    let Ok(Some(user)) = User::from_uid(uid) else { return false };
    let Ok(name) = CString::new(user.name) else { return false };
    getgrouplist(&name, gid).is_ok_and(|groups| groups.contains(&group))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRANGER: u32 = 4_000_000;

    #[test]
    fn root_and_the_group_may_and_others_may_not() {
        let none = Allowed::new(None).unwrap();
        let group = Allowed::new(Some("4000001")).unwrap();
        let (root, stranger) = (Uid::from_raw(0), Uid::from_raw(STRANGER));
        let (inside, other) = (Gid::from_raw(4_000_001), Gid::from_raw(STRANGER));
        assert!(none.check_ids(root, other).is_ok() && group.check_ids(root, other).is_ok());
        assert!(group.check_ids(stranger, inside).is_ok());
        let denied = group.check_ids(stranger, other).unwrap_err().to_string();
        assert_eq!(
            denied,
            "user 4000000 may not use this socket: it is for root and members of group 4000001"
        );
        assert!(none.check_ids(stranger, inside).is_err());
    }

    #[test]
    fn unknown_group_is_named() {
        let error = Allowed::new(Some("no-such-group-here")).unwrap_err().to_string();
        assert!(error.contains("no-such-group-here"), "{error}");
    }
}
