//! The order in which services are set: one that lets go of a frontend comes before the one that
//! takes it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use overlane_api::{Change, Object, ObjectKey, Protocol, Service};

/// What a frontend is known by.
pub(super) type Key = (IpAddr, Protocol, u16);

/// A service to be set, and the frontends that the installed one has and this one has not.
#[derive(Debug, Clone, Copy)]
pub(super) struct Next<'a> {
    pub(super) service: &'a Service,
    pub(super) gives_up: &'a BTreeSet<Key>,
}

/// The frontends of a service.
pub(super) fn keys(service: &Service) -> impl Iterator<Item = Key> {
    let protocol = service.protocol;
    service.frontends.iter().map(move |frontend| (frontend.address, protocol, frontend.port))
}

/// The changes that set all of `services`. Where they exchange frontends in a circle, one of them
/// is removed first.
pub(super) fn changes(services: Vec<Next<'_>>) -> Vec<Change> {
    let mut held: BTreeMap<Key, &str> = BTreeMap::new();
    for next in &services {
        held.extend(next.gives_up.iter().map(|key| (*key, next.service.name.as_str())));
    }
    let mut changes = Vec::with_capacity(services.len());
    let mut waiting = services;
    while !waiting.is_empty() {
        let before = waiting.len();
        let mut blocked = Vec::new();
        for next in waiting {
            let is_free = |key: Key| held.get(&key).is_none_or(|owner| *owner == next.service.name);
            if held.is_empty() || keys(next.service).all(is_free) {
                next.gives_up.iter().for_each(|key| {
                    held.remove(key);
                });
                changes.push(Change::Set(Object::Service(next.service.clone())));
            } else {
                blocked.push(next);
            }
        }
        // Nobody can go first: whoever blocks the first one is removed until its turn comes.
        if let Some(first) = blocked.first().filter(|_| blocked.len() == before) {
            let other = |key: Key| held.get(&key).filter(|owner| **owner != first.service.name);
            let Some(owner) = keys(first.service).find_map(other).copied() else { break };
            held.retain(|_, other| *other != owner);
            changes.push(Change::Remove(ObjectKey::Service(owner.to_owned())));
        }
        waiting = blocked;
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    use overlane_api::{Frontend, FrontendKind};

    fn service(name: &str, last: &[u8]) -> Service {
        let frontend = |last: &u8| Frontend {
            address: [10, 96, 0, *last].into(),
            port: 80,
            kind: FrontendKind::ClusterIp,
        };
        let text = format!(r#"{{"name":"{name}","protocol":"tcp","frontends":[],"backends":[]}}"#);
        let mut service: Service = serde_json::from_str(&text).unwrap();
        service.frontends = last.iter().map(frontend).collect();
        service
    }

    /// Sets services from what they had to what they should have; says what is done, and checks
    /// that no frontend is ever with two.
    fn move_all(moves: &[(&str, &[u8], &[u8])]) -> Vec<String> {
        let before: Vec<Service> = moves.iter().map(|(name, old, _)| service(name, old)).collect();
        let after: Vec<Service> = moves.iter().map(|(name, _, new)| service(name, new)).collect();
        let gives_up: Vec<BTreeSet<Key>> = before
            .iter()
            .zip(&after)
            .map(|(before, after)| {
                keys(before).filter(|key| !keys(after).any(|other| other == *key)).collect()
            })
            .collect();
        let next = after.iter().zip(&gives_up);
        let next = next.map(|(service, gives_up)| Next { service, gives_up }).collect();
        let mut owners: BTreeMap<Key, String> = BTreeMap::new();
        for service in &before {
            owners.extend(keys(service).map(|key| (key, service.name.clone())));
        }
        let mut log = Vec::new();
        for change in changes(next) {
            match change {
                Change::Set(Object::Service(service)) => {
                    owners.retain(|_, owner| *owner != service.name);
                    for key in keys(&service) {
                        let other = owners.insert(key, service.name.clone());
                        assert_eq!(other, None, "{key:?} has two owners: {log:?}");
                    }
                    log.push(format!("set {}", service.name));
                }
                Change::Remove(ObjectKey::Service(name)) => {
                    owners.retain(|_, owner| *owner != name);
                    log.push(format!("remove {name}"));
                }
                other => panic!("{other:?}"),
            }
        }
        for service in &after {
            assert!(keys(service).all(|key| owners.get(&key) == Some(&service.name)));
        }
        log
    }

    #[test]
    fn without_exchange_the_order_is_kept() {
        assert_eq!(move_all(&[("a", &[1], &[1]), ("b", &[], &[2])]), ["set a", "set b"]);
    }

    #[test]
    fn a_chain_is_followed_from_its_free_end() {
        let log = move_all(&[("a", &[1], &[2]), ("b", &[2], &[3]), ("c", &[3], &[4])]);
        assert_eq!(log, ["set c", "set b", "set a"]);
    }

    #[test]
    fn a_circle_is_opened_by_removing_one() {
        let log = move_all(&[("a", &[1], &[2]), ("b", &[2], &[1])]);
        assert_eq!(log, ["remove b", "set a", "set b"]);
    }

    #[test]
    fn one_that_waits_for_a_circle_is_no_part_of_it() {
        let log = move_all(&[("a", &[], &[1]), ("b", &[1, 2], &[3]), ("c", &[3], &[2])]);
        assert_eq!(log, ["remove b", "set a", "set c", "set b"]);
    }
}
