//! Addresses to answer for on the underlay: in force while whoever chose this node for them says
//! so.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use overlane_api::protocol::{ApiError, ErrorCode};
use overlane_api::{Announcement, Object};

use super::{Compiler, Effect};

/// Most addresses: each is an entry of the uplink program's table of 65,536.
const MAX_ANNOUNCEMENTS: usize = 16_384;

impl Compiler {
    pub(super) fn announcement(&self, address: IpAddr) -> Option<Object> {
        let is_there = self.announcements.contains(&address);
        is_there.then_some(Object::Announcement(Announcement { address }))
    }

    pub(super) fn check_announcement(&self, address: IpAddr) -> Result<(), ApiError> {
        let refuse = |what: String, hint: &str| {
            let at = format!("announcement {address}");
            Err(ApiError::new(ErrorCode::Refused, what).at(at).hint(hint))
        };
        if address.is_unspecified() || address.is_multicast() || address.is_loopback() {
            return refuse(format!("{address} is nobody's"), "give a unicast address");
        }
        if self.node.as_ref().is_some_and(|node| node.addresses.contains(&address)) {
            let what = format!("{address} is this node's own, and the host answers for it");
            return refuse(what, "give an address that no node has");
        }
        if self.announcements.len() >= MAX_ANNOUNCEMENTS {
            let what = format!("there are {MAX_ANNOUNCEMENTS} announcements already");
            return refuse(what, "route the others to the nodes instead");
        }
        Ok(())
    }

    pub(super) fn set_announcement(&mut self, address: IpAddr) -> Vec<Effect> {
        self.announcements.insert(address);
        self.refresh_announced()
    }

    pub(super) fn remove_announcement(&mut self, address: IpAddr) -> Vec<Effect> {
        if self.announcements.remove(&address) { self.refresh_announced() } else { Vec::new() }
    }

    /// Puts the announcements in force, or out of it. Says whether that changes anything.
    pub fn set_leased(&mut self, is_leased: bool) -> bool {
        if self.is_leased == is_leased {
            return false;
        }
        self.is_leased = is_leased;
        self.refresh_announced();
        !self.announcements.is_empty()
    }

    /// The addresses that are answered for now.
    #[must_use]
    pub fn announced(&self) -> &BTreeSet<IpAddr> {
        &self.tables.announced
    }

    fn refresh_announced(&mut self) -> Vec<Effect> {
        let announced =
            if self.is_leased { self.announcements.clone() } else { BTreeSet::default() };
        self.tables.announced = Arc::new(announced);
        vec![Effect::Announcements]
    }
}
