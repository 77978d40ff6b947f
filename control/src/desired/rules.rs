//! Egress rules: the pods that each one means, kept up to date as they come and go.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use overlane_api::{Egress, EgressAction, Object, ObjectKey};

use super::Context;
use super::objects::{Remark, Subject};
use crate::manifests::pod::Standing;
use crate::manifests::{Manifest, ManifestKey, NamespaceManifest, PodManifest};
use crate::validate::{EgressRule, Validated};

/// A rule with the pods it means.
#[derive(Debug)]
struct Rule {
    rule: EgressRule,
    /// Addresses of a pod; of no use when the rule has no selector.
    members: BTreeMap<String, Vec<IpNet>>,
    is_dirty: bool,
}

/// All rules.
#[derive(Debug, Default)]
pub(super) struct Rules {
    rules: Vec<Rule>,
    pods: BTreeSet<String>,
    namespaces: BTreeSet<String>,
}

impl Rules {
    pub(super) fn new(config: &Validated) -> Self {
        let rules = config.egress.iter().map(|rule| Rule {
            rule: rule.clone(),
            members: BTreeMap::new(),
            is_dirty: true,
        });
        Self { rules: rules.collect(), ..Self::default() }
    }

    /// Notes what a change concerns.
    pub(super) fn note(&mut self, key: &ManifestKey) {
        if self.rules.is_empty() {
            return;
        }
        match key {
            ManifestKey::Pod(name) => {
                self.pods.insert(name.clone());
            }
            ManifestKey::Namespace(name) => {
                self.namespaces.insert(name.clone());
            }
            ManifestKey::Node(_) | ManifestKey::Service(_) | ManifestKey::EndpointSlice(_) => {}
        }
    }

    /// Other nodes than before can hold gateways.
    pub(super) fn note_members(&mut self) {
        for rule in &mut self.rules {
            rule.is_dirty |= matches!(rule.rule.action, EgressAction::Gateway { .. });
        }
    }

    /// Compiles what has changed.
    pub(super) fn compile(&mut self, cx: &mut Context<'_>) {
        let mut pods = std::mem::take(&mut self.pods);
        for namespace in std::mem::take(&mut self.namespaces) {
            let prefix = format!("{namespace}/");
            pods.extend(cx.view.pods(&prefix).map(|pod| pod.name.clone()));
        }
        for rule in &mut self.rules {
            if rule.rule.selects() {
                for name in &pods {
                    rule.update(name, cx);
                }
            }
            if std::mem::take(&mut rule.is_dirty) {
                rule.install(cx);
            }
        }
    }
}

impl Rule {
    fn update(&mut self, name: &str, cx: &Context<'_>) {
        let pod = cx.view.pod(name).filter(|pod| self.means(pod, cx));
        let addresses: Option<Vec<IpNet>> =
            pod.map(|pod| pod.addresses.iter().copied().map(IpNet::from).collect());
        if self.members.get(name) == addresses.as_ref() {
            return;
        }
        self.is_dirty = true;
        match addresses {
            Some(addresses) => self.members.insert(name.to_owned(), addresses),
            None => self.members.remove(name),
        };
    }

    /// Is it a pod of this rule, and does this node have to do with it?
    fn means(&self, pod: &PodManifest, cx: &Context<'_>) -> bool {
        let own = &cx.config.node_name;
        let concerned = pod.node == *own
            || matches!(&self.rule.action, EgressAction::Gateway { nodes, .. } if nodes.contains(own));
        if pod.standing != Standing::Attached || !concerned {
            return false;
        }
        if !self.rule.pods.as_ref().is_none_or(|pods| pods.matches(&pod.labels)) {
            return false;
        }
        let Some(namespaces) = &self.rule.namespaces else { return true };
        let name = pod.namespace();
        match cx.view.get(&ManifestKey::Namespace(name.to_owned())) {
            Some(Manifest::Namespace(namespace)) => namespaces.matches(&namespace.labels),
            _ => namespaces.matches(&NamespaceManifest::bare(name).labels),
        }
    }

    /// A rule with a selector that means no pod must not become one that means all.
    fn install(&self, cx: &mut Context<'_>) {
        let name = &self.rule.name;
        let subject = Subject::Rule(name.clone());
        let sources: BTreeSet<IpNet> = self.members.values().flatten().copied().collect();
        let mut remark = Remark::default();
        if self.rule.selects() && sources.is_empty() {
            cx.objects.remove(&ObjectKey::Egress(name.clone()));
            remark.pending.push(format!("egress rule {name} waits for a pod that it means"));
            cx.remarks.set(subject, remark);
            return;
        }
        cx.remarks.set(subject, remark);
        let sources = if self.rule.selects() {
            sources.into_iter().collect()
        } else {
            self.rule.sources.clone()
        };
        cx.objects.set(Object::Egress(Egress {
            name: name.clone(),
            order: self.rule.order,
            sources,
            destinations: self.rule.destinations.clone(),
            action: cx.members.with_holder(&self.rule.action),
        }));
    }
}
