//! Who may use the socket.

use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::{Gid, Group, Uid, User, getgrouplist};
use overlane_api::protocol::{ApiError, ErrorCode};

use super::{SocketError, failed};

/// Root, the process's own user, and the members of one group if configured.
#[derive(Debug, Clone)]
pub struct Access {
    own: Uid,
    group: Option<(Gid, String)>,
}

impl Access {
    /// Looks the group up.
    ///
    /// # Errors
    /// [`SocketError::NoGroup`] when it does not exist.
    pub fn new(path: &Path, group: Option<&str>) -> Result<Self, SocketError> {
        let group = match group {
            None => None,
            Some(name) => match Group::from_name(name) {
                Ok(Some(group)) => Some((group.gid, group.name)),
                Ok(None) => return Err(SocketError::NoGroup(name.to_owned())),
                Err(errno) => return Err(failed("look up the group of", path)(errno.into())),
            },
        };
        Ok(Self { own: Uid::effective(), group })
    }

    /// The group's number.
    #[must_use]
    pub fn gid(&self) -> Option<Gid> {
        self.group.as_ref().map(|(gid, _)| *gid)
    }

    /// Checks the credentials that the kernel noted when the peer connected.
    ///
    /// # Errors
    /// [`ErrorCode::Denied`], with what to do.
    pub fn check(&self, stream: &UnixStream) -> Result<(), ApiError> {
        let peer = getsockopt(stream, sockopt::PeerCredentials).map_err(|errno| {
            ApiError::new(ErrorCode::Denied, format!("cannot tell who you are: {errno}"))
        })?;
        let (uid, gid) = (Uid::from_raw(peer.uid()), Gid::from_raw(peer.gid()));
        if self.allows(uid, gid) { Ok(()) } else { Err(self.denial(uid)) }
    }

    fn allows(&self, uid: Uid, gid: Gid) -> bool {
        if uid.is_root() || uid == self.own {
            return true;
        }
        let Some(wanted) = self.gid() else { return false };
        wanted == gid || groups_of(uid, gid).contains(&wanted)
    }

    fn denial(&self, uid: Uid) -> ApiError {
        let hint = match &self.group {
            Some((_, name)) => format!("become root, or join the group {name}"),
            None => "become root, or start the dataplane with --group".to_owned(),
        };
        ApiError::new(ErrorCode::Denied, format!("user {uid} may not use this socket")).hint(hint)
    }
}

/// All groups of a user as the system's user table has them.
fn groups_of(uid: Uid, gid: Gid) -> Vec<Gid> {
    let Ok(Some(user)) = User::from_uid(uid) else { return Vec::new() };
    let name = std::ffi::CString::new(user.name).unwrap_or_default();
    getgrouplist(&name, gid).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_own_user_and_group_members_only() {
        let nobody = Uid::from_raw(65_534);
        let access = Access {
            own: Uid::from_raw(4_000_001),
            group: Some((Gid::from_raw(4_000_100), "overlane".into())),
        };
        assert!(access.allows(Uid::from_raw(0), Gid::from_raw(0)));
        assert!(access.allows(Uid::from_raw(4_000_001), Gid::from_raw(7)));
        assert!(access.allows(nobody, Gid::from_raw(4_000_100)));
        assert!(!access.allows(nobody, Gid::from_raw(4_000_101)));
        let closed = Access { own: Uid::from_raw(4_000_001), group: None };
        assert!(!closed.allows(nobody, Gid::from_raw(4_000_100)));
        assert!(access.denial(nobody).to_string().contains("join the group overlane"));
        assert_eq!(closed.denial(nobody).code, ErrorCode::Denied);
    }

    #[test]
    fn an_unknown_group_is_named() {
        let error = Access::new(Path::new("/x"), Some("no-such-group")).unwrap_err();
        assert!(error.to_string().contains("no-such-group"), "{error}");
    }
}
