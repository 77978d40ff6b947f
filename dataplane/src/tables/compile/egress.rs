//! Egress rules. The tables are made anew, once for all changes of a call: the order of the rules
//! concerns all of them. Destinations of sources for which nothing changed are taken over.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use overlane_api::protocol::{ApiError, ErrorCode};
use overlane_api::{Egress, EgressAction, Node, SnatSettings};

use super::names::Names;
use super::{Compiler, Effect, everything};
use crate::tables::egress::{EgressTables, Holder, Rule};
use crate::tables::external::External;
use crate::tables::host_ports::HostPorts;
use crate::tables::intervals::Spaces;

/// Most rules.
const MAX_RULES: usize = 4096;

/// Most sources of all rules, and most destinations.
const MAX_PREFIXES: usize = 1 << 17;

/// Most pieces of destinations in the tables: as many as all classes of sources have.
const MAX_PIECES: usize = 1 << 21;

#[derive(Debug)]
struct Record {
    object: Egress,
    /// The number in the tables is one more: 0 is the node's action.
    place: u32,
    /// Another for each state of its destinations.
    version: u64,
}

/// Rules that name a source, in order: their places and versions.
type Class = Vec<(u32, u64)>;

/// The rules and what was made of them.
#[derive(Debug, Default)]
pub(super) struct Rules {
    records: HashMap<String, Record>,
    /// In the order in which they are asked.
    order: BTreeMap<(u32, String), u32>,
    names: Names,
    version: u64,
    sources: usize,
    destinations: usize,
    /// Rules whose action is a gateway.
    gateways: usize,
    classes: HashMap<Class, Arc<Spaces>>,
    /// Do the tables have to be made anew?
    stale: bool,
}

impl Rules {
    pub(super) fn get(&self, name: &str) -> Option<&Egress> {
        self.records.get(name).map(|record| &record.object)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.records.keys()
    }

    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    /// The node, or what it knows of its peers, has changed.
    pub(super) fn mark_stale(&mut self) {
        self.stale = true;
    }

    fn insert(&mut self, object: Egress) {
        let old = self.take(&object.name);
        let same = old.as_ref().filter(|old| old.object.destinations == object.destinations);
        let version = same.map_or(self.version + 1, |old| old.version);
        self.version = self.version.max(version);
        let place = old.map_or_else(|| self.names.claim(&object.name), |old| old.place);
        self.sources += object.sources.len();
        self.destinations += object.destinations.len();
        self.gateways += usize::from(is_gateway(&object.action));
        self.order.insert((object.order, object.name.clone()), place);
        self.records.insert(object.name.clone(), Record { object, place, version });
    }

    fn remove(&mut self, name: &str) -> bool {
        let record = self.take(name);
        if let Some(record) = &record {
            self.names.release(record.place);
        }
        record.is_some()
    }

    /// Takes a rule out; its place stays its own.
    fn take(&mut self, name: &str) -> Option<Record> {
        self.stale = true;
        let record = self.records.remove(name)?;
        let object = &record.object;
        self.order.remove(&(object.order, object.name.clone()));
        self.sources -= object.sources.len();
        self.destinations -= object.destinations.len();
        self.gateways -= usize::from(is_gateway(&object.action));
        Some(record)
    }

    /// Records in the order in which they are asked.
    fn ordered(&self) -> impl Iterator<Item = &Record> {
        self.order.keys().filter_map(|(_, name)| self.records.get(name))
    }

    /// Sources by class, and what each class is.
    fn classify(&self) -> (Spaces, Vec<Class>) {
        let mut prefixes = Vec::new();
        let mut owners = Vec::new();
        let mut rules = Vec::new();
        for (rank, record) in (0_u32..).zip(self.ordered()) {
            let sources = or_everything(&record.object.sources);
            owners.resize(owners.len() + sources.len(), rank);
            prefixes.extend_from_slice(&sources);
            rules.push((record.place, record.version));
        }
        // What a source is in, as a list: the innermost, and the number of the list around it.
        let mut around = vec![(0, 0)];
        let mut known: HashMap<(u32, u32), u32> = HashMap::new();
        let sources = Spaces::cut(&prefixes, |outer, place| {
            let rank = owners.get(place as usize).copied().unwrap_or_default();
            *known.entry((outer, rank)).or_insert_with(|| {
                around.push((outer, rank));
                u32::try_from(around.len() - 1).unwrap_or(0)
            })
        });
        // Many lists are of no piece, being inside of equal prefixes, and many are of equal rules.
        let mut classes = vec![Class::new()];
        let mut numbers = HashMap::from([(Class::new(), 0)]);
        let mut found = HashMap::from([(0, 0)]);
        let sources = sources.renumber(|list| {
            *found.entry(list).or_insert_with(|| {
                let mut ranks = Vec::new();
                let mut at = list;
                while let Some((outer, rank)) = around.get(at as usize).filter(|_| at != 0) {
                    ranks.push(*rank);
                    at = *outer;
                }
                ranks.sort_unstable();
                ranks.dedup();
                let class = ranks.iter().filter_map(|rank| rules.get(*rank as usize)).copied();
                let next = u32::try_from(classes.len()).unwrap_or(u32::MAX);
                *numbers.entry(class.collect()).or_insert_with_key(|class: &Class| {
                    classes.push(class.clone());
                    next
                })
            })
        });
        (sources, classes)
    }

    /// Destinations of a class: each with the number of the first rule that names it.
    fn destinations(&self, class: &Class) -> Spaces {
        let mut prefixes = Vec::new();
        let mut numbers = Vec::new();
        for (place, _) in class {
            let rule = self.names.get(*place).and_then(|name| self.records.get(name));
            let Some(record) = rule else { continue };
            let destinations = or_everything(&record.object.destinations);
            numbers.resize(numbers.len() + destinations.len(), record.place + 1);
            prefixes.extend_from_slice(&destinations);
            if record.object.destinations.is_empty() {
                // No later rule is asked.
                break;
            }
        }
        Spaces::first(&prefixes, |place| numbers.get(place as usize).copied().unwrap_or_default())
    }

    /// Makes the classes, with what is still right of the former ones.
    fn build(&mut self) -> Result<(Spaces, Vec<Arc<Spaces>>), ApiError> {
        let (sources, classes) = self.classify();
        let former = std::mem::take(&mut self.classes);
        let mut pieces = 0;
        let mut spaces = Vec::with_capacity(classes.len());
        for class in classes {
            let space =
                former.get(&class).cloned().unwrap_or_else(|| Arc::new(self.destinations(&class)));
            pieces += space.v4.len() + space.v6.len();
            if pieces > MAX_PIECES {
                let what = format!(
                    "the rules give {} groups of pods different destinations: too many to tell apart",
                    spaces.len()
                );
                return Err(ApiError::new(ErrorCode::Refused, what)
                    .at("egress")
                    .hint("use fewer rules, or rules whose sources overlap less"));
            }
            self.classes.insert(class, space.clone());
            spaces.push(space);
        }
        Ok((sources, spaces))
    }
}

const fn is_gateway(action: &EgressAction) -> bool {
    matches!(action, EgressAction::Gateway { .. })
}

fn or_everything(prefixes: &[IpNet]) -> Cow<'_, [IpNet]> {
    if prefixes.is_empty() { everything().to_vec().into() } else { prefixes.into() }
}

/// What is wrong with an action: what, and what to do.
fn check_action(action: &EgressAction) -> Result<(), (String, &'static str)> {
    let EgressAction::Gateway { addresses, nodes } = action else { return Ok(()) };
    if addresses.is_empty() || addresses.len() > Egress::MAX_ADDRESSES {
        return Err((format!("{} gateway addresses", addresses.len()), "give 1 to 16"));
    }
    for (place, address) in addresses.iter().enumerate() {
        if address.is_unspecified() || address.is_multicast() || address.is_loopback() {
            return Err((format!("{address} is no gateway's address"), "give a unicast address"));
        }
        if addresses.iter().take(place).any(|other| other == address) {
            return Err((format!("address {address} is given twice"), "give each once"));
        }
    }
    if nodes.is_empty() {
        return Err(("no node holds the addresses".into(), "name the node that does"));
    }
    Ok(())
}

/// Does `new` differ from `old` in what is done with flows that no rule names, and in nothing else?
/// Another node may have taken over a gateway, which concerns nothing but that.
pub(super) fn differs_in_action_only(old: &Node, new: &Node) -> bool {
    let mut same = old.clone();
    same.snat.action = new.snat.action.clone();
    same == *new
}

/// Refuses a node whose settings for leaving the cluster cannot be.
pub(super) fn check_settings(node: &Node) -> Result<(), ApiError> {
    let refuse = |what: String, field: &str, hint: &str| {
        let at = format!("node {}: snat.{field}", node.name);
        Err(ApiError::new(ErrorCode::Refused, what).at(at).hint(hint))
    };
    if let Err((what, hint)) = check_action(&node.snat.action) {
        return refuse(what, "action", hint);
    }
    let count = node.snat.non_masquerade.len();
    if count > MAX_PREFIXES {
        let what = format!("{count} ranges are more than {MAX_PREFIXES}");
        return refuse(what, "non_masquerade", "give larger ranges");
    }
    Ok(())
}

impl Compiler {
    pub(super) fn set_egress(&mut self, rule: Egress) -> Vec<Effect> {
        self.egress.insert(rule);
        vec![Effect::Egress]
    }

    pub(super) fn remove_egress(&mut self, name: &str) -> Vec<Effect> {
        if self.egress.remove(name) { vec![Effect::Egress] } else { Vec::new() }
    }

    pub(super) fn check_egress(&self, rule: &Egress) -> Result<(), ApiError> {
        let refuse = |what: String, field: &str, hint: &str| {
            let at = format!("egress {}: {field}", rule.name);
            Err(ApiError::new(ErrorCode::Refused, what).at(at).hint(hint))
        };
        let old = self.egress.get(&rule.name);
        if old.is_none() && self.egress.len() >= MAX_RULES {
            let what = format!("there are {MAX_RULES} rules already");
            return refuse(what, "name", "use fewer rules, with more sources or destinations each");
        }
        let (own_sources, own_destinations) =
            old.map_or((0, 0), |old| (old.sources.len(), old.destinations.len()));
        for (field, prefixes, all, own) in [
            ("sources", &rule.sources, self.egress.sources, own_sources),
            ("destinations", &rule.destinations, self.egress.destinations, own_destinations),
        ] {
            let count = all - own + prefixes.len();
            if count > MAX_PREFIXES {
                let what = format!("{count} {field} of all rules are more than {MAX_PREFIXES}");
                return refuse(what, field, "give larger ranges");
            }
        }
        check_action(&rule.action).or_else(|(what, hint)| refuse(what, "action", hint))
    }

    /// Brings the egress tables up to date with the rules, the node and its peers.
    pub(super) fn finish_egress(&mut self) -> Result<(), ApiError> {
        if !self.egress.stale {
            return Ok(());
        }
        let (sources, classes) = self.egress.build()?;
        let settings = self.node.as_ref().map_or_else(SnatSettings::default, |n| n.snat.clone());
        let holder = |action: &EgressAction| self.holder(action);
        let mut rules = vec![Rule::Action(&settings.action, holder(&settings.action))];
        for record in self.egress.ordered() {
            let number = record.place as usize + 1;
            if rules.len() <= number {
                rules.resize(number + 1, Rule::Free);
            }
            let action = &record.object.action;
            rules[number] = Rule::Action(action, holder(action));
        }
        let keep = Spaces::union(&settings.non_masquerade);
        let tables = EgressTables::new(keep, sources, classes, rules.into_iter());
        let (v4, v6) = self.node.as_ref().map_or((None, None), |node| (node.ipv4(), node.ipv6()));
        let tables = tables.with_node(v4, v6);
        let external = External::new(&settings, tables.addresses(), &self.tables.external);
        self.tables.external = Arc::new(external);
        self.tables.egress = Arc::new(tables);
        self.egress.stale = false;
        Ok(())
    }

    /// Do flows leave with any address?
    #[must_use]
    pub fn has_external(&self) -> bool {
        self.tables.external.addresses().next().is_some()
    }

    /// Ports on which the host listens. Says whether anything is different.
    pub fn set_host_ports(&mut self, ports: HostPorts) -> bool {
        let is_new = *self.tables.host_ports != ports;
        if is_new {
            self.tables.host_ports = Arc::new(ports);
        }
        is_new
    }

    /// The first node of a gateway's that is known.
    fn holder(&self, action: &EgressAction) -> Holder {
        let EgressAction::Gateway { nodes, .. } = action else { return Holder::Nobody };
        let is_here = |name: &String| self.node.as_ref().is_some_and(|node| node.name == *name);
        let holder = |name: &String| {
            if is_here(name) {
                return Some(Holder::Here);
            }
            self.peers.get(name).map(|peer| Holder::Peer(peer.index))
        };
        nodes.iter().find_map(holder).unwrap_or(Holder::Nobody)
    }

    /// A peer came or went: perhaps it holds a gateway's addresses.
    pub(super) fn refresh_holders(&mut self) {
        if self.node.as_ref().is_some_and(|node| is_gateway(&node.snat.action))
            || self.egress.gateways > 0
        {
            self.egress.stale = true;
        }
    }

    /// Egress rules in the order in which they are asked.
    pub fn egress_rules(&self) -> impl Iterator<Item = &Egress> {
        self.egress.ordered().map(|record| &record.object)
    }

    /// What is done with a flow that leaves the cluster, and the rule that says so; none: the
    /// node's settings do.
    #[must_use]
    pub fn egress_rule(&self, source: IpAddr, destination: IpAddr) -> Option<&Egress> {
        let number = self.tables.egress.rule(source, destination)?;
        let name = self.egress.names.get(number.checked_sub(1)?)?;
        self.egress.get(name)
    }
}
