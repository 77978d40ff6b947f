//! Label selectors: which objects are meant (LabelSelector of the Kubernetes API).

use std::collections::BTreeMap;

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// What a label must be.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Requirement {
    /// The label.
    pub key: String,
    /// How it is judged.
    pub operator: Operator,
    /// What it is compared with: at least one for `In` and `NotIn`, none for the others.
    #[serde(default)]
    pub values: Vec<String>,
}

/// How a label is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
pub enum Operator {
    /// It is there and is one of the values.
    In,
    /// It is not there, or none of the values.
    NotIn,
    /// It is there.
    Exists,
    /// It is not there.
    DoesNotExist,
}

/// Which objects are meant: those that match all of it. An empty one means all.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Selector {
    /// Labels that must be just so.
    pub match_labels: Labels,
    /// What other labels must be.
    pub match_expressions: Vec<Requirement>,
}

impl Selector {
    /// Does an object with `labels` match?
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        has_all(labels, &self.match_labels)
            && self.match_expressions.iter().all(|requirement| requirement.holds(labels))
    }

    /// A requirement whose values do not suit its operator.
    #[must_use]
    pub fn malformed(&self) -> Option<&Requirement> {
        self.match_expressions.iter().find(|requirement| {
            let wants_values = matches!(requirement.operator, Operator::In | Operator::NotIn);
            wants_values == requirement.values.is_empty()
        })
    }
}

impl Requirement {
    fn holds(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        match self.operator {
            Operator::In => value.is_some_and(|value| self.values.contains(value)),
            Operator::NotIn => value.is_none_or(|value| !self.values.contains(value)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

/// Are all of `wanted` among `labels`?
#[must_use]
pub fn has_all(labels: &Labels, wanted: &Labels) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operator_is_judged_as_the_api_says() {
        let labels: Labels =
            [("app", "web"), ("tier", "front")].map(|(k, v)| (k.into(), v.into())).into();
        for (text, matches) in [
            ("{}", true),
            ("{matchLabels: {app: web}}", true),
            ("{matchLabels: {app: web, tier: back}}", false),
            ("{matchExpressions: [{key: app, operator: In, values: [db, web]}]}", true),
            ("{matchExpressions: [{key: zone, operator: In, values: [a]}]}", false),
            ("{matchExpressions: [{key: app, operator: NotIn, values: [web]}]}", false),
            ("{matchExpressions: [{key: zone, operator: NotIn, values: [a]}]}", true),
            ("{matchExpressions: [{key: app, operator: Exists}]}", true),
            ("{matchExpressions: [{key: app, operator: DoesNotExist}]}", false),
            ("{matchExpressions: [{key: zone, operator: DoesNotExist}]}", true),
        ] {
            let selector: Selector = serde_yaml_ng::from_str(text).unwrap();
            assert_eq!(selector.matches(&labels), matches, "{text}");
            assert_eq!(selector.malformed(), None);
        }
        for text in ["[{key: a, operator: In}]", "[{key: a, operator: Exists, values: [b]}]"] {
            let text = format!("{{matchExpressions: {text}}}");
            let selector: Selector = serde_yaml_ng::from_str(&text).unwrap();
            assert!(selector.malformed().is_some(), "{text}");
        }
    }
}
