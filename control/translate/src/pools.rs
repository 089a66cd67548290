//! Pools: the addresses that Services of type LoadBalancer get theirs from, and which Services may.
//!
//! Selectors decide what is given; who has an address keeps it when labels change.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::context::AddressRange;

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// The label that every namespace has, with its name.
const NAME: &str = "kubernetes.io/metadata.name";

/// Addresses that Services of type LoadBalancer get theirs from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Its name, for findings and announcements.
    pub name: String,
    /// Its addresses, of either family.
    pub addresses: Vec<AddressRange>,
    /// Pools with a higher one are tried first.
    pub priority: i32,
    /// Whether it gives addresses to Services that ask for none.
    pub auto_assign: bool,
    /// Which namespaces' Services may have its addresses.
    pub namespaces: Selector,
    /// Which Services may have its addresses.
    pub services: Selector,
}

impl Pool {
    /// A pool for all Services.
    #[must_use]
    pub fn new(name: impl Into<String>, addresses: Vec<AddressRange>) -> Self {
        let (namespaces, services) = (Selector::default(), Selector::default());
        Self { name: name.into(), addresses, priority: 0, auto_assign: true, namespaces, services }
    }

    /// Whether it has the address.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.addresses.iter().any(|range| range.contains(ip))
    }

    /// Whether a Service with these labels may get an address of it. A namespace that is not known has its name's label
    /// alone.
    #[must_use]
    pub fn admits(&self, namespace: &str, namespaces: &BTreeMap<String, Labels>, service: &Labels) -> bool {
        if !self.services.matches(service) {
            return false;
        }
        match namespaces.get(namespace) {
            Some(labels) => self.namespaces.matches(labels),
            None => self.namespaces.matches(&Labels::from([(NAME.to_owned(), namespace.to_owned())])),
        }
    }
}

/// Which labels are meant; all, where nothing is required. Source: `LabelSelector` of the Kubernetes API.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector(Vec<Requirement>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    operator: Operator,
    values: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

impl Selector {
    /// From what a manifest says.
    ///
    /// # Errors
    /// What is wrong with an expression, and what was expected.
    pub fn of(selector: &LabelSelector) -> Result<Self, String> {
        let labels = selector.match_labels.iter().flatten();
        let labels = labels.map(|(key, value)| Self::requirement(key, "In", std::slice::from_ref(value)));
        let expressions = selector.match_expressions.iter().flatten();
        let expressions = expressions.map(|expression| {
            Self::requirement(&expression.key, &expression.operator, expression.values.as_deref().unwrap_or_default())
        });
        labels.chain(expressions).collect::<Result<_, _>>().map(Self)
    }

    fn requirement(key: &str, operator: &str, values: &[String]) -> Result<Requirement, String> {
        let (operator, with_values) = match operator {
            "In" => (Operator::In, true),
            "NotIn" => (Operator::NotIn, true),
            "Exists" => (Operator::Exists, false),
            "DoesNotExist" => (Operator::DoesNotExist, false),
            other => return Err(format!("`{other}` of `{key}`, expected In, NotIn, Exists or DoesNotExist")),
        };
        if with_values == values.is_empty() {
            let expected = if with_values { "values" } else { "no values" };
            return Err(format!("{operator:?} of `{key}`, expected {expected}"));
        }
        Ok(Requirement { key: key.to_owned(), operator, values: values.to_vec() })
    }

    /// Whether labels are as required.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|Requirement { key, operator, values }| {
            let value = labels.get(key);
            match operator {
                Operator::In => value.is_some_and(|value| values.contains(value)),
                Operator::NotIn => value.is_none_or(|value| !values.contains(value)),
                Operator::Exists => value.is_some(),
                Operator::DoesNotExist => value.is_none(),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement;

    use super::*;

    fn labels(all: &[(&str, &str)]) -> Labels {
        all.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn expression(key: &str, operator: &str, values: &[&str]) -> LabelSelector {
        let values = values.iter().map(|&value| value.to_owned()).collect();
        let (key, operator) = (key.to_owned(), operator.to_owned());
        let requirement = LabelSelectorRequirement { key, operator, values: Some(values) };
        LabelSelector { match_expressions: Some(vec![requirement]), match_labels: None }
    }

    #[test]
    fn a_selector_means_what_one_of_the_api_means() {
        let team = |value: &str| labels(&[("team", value)]);
        for (operator, values, a, b, none) in [
            ("In", &["a"][..], true, false, false),
            ("In", &["a", "b"], true, true, false),
            ("NotIn", &["a"], false, true, true),
            ("Exists", &[], true, true, false),
            ("DoesNotExist", &[], false, false, true),
        ] {
            let selector = Selector::of(&expression("team", operator, values)).expect("a selector");
            let found = [team("a"), team("b"), Labels::new()].map(|labels| selector.matches(&labels));
            assert_eq!(found, [a, b, none], "{operator} {values:?}");
        }
        let both = LabelSelector { match_labels: Some(labels(&[("x", "1")])), ..expression("y", "Exists", &[]) };
        let both = Selector::of(&both).expect("a selector");
        assert!(both.matches(&labels(&[("x", "1"), ("y", "")])) && !both.matches(&labels(&[("x", "1")])));
        assert!(Selector::default().matches(&Labels::new()));
    }

    #[test]
    fn an_expression_that_cannot_be_says_what_was_expected() {
        for (operator, values, says) in [
            ("In", &[][..], "expected values"),
            ("Exists", &["a"], "expected no values"),
            ("in", &["a"], "expected In, "),
        ] {
            let error = Selector::of(&expression("team", operator, values)).expect_err("no selector");
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn a_namespace_that_is_not_known_has_its_name() {
        let selector = Selector::of(&expression(NAME, "In", &["shop"])).expect("a selector");
        let pool = Pool { namespaces: selector, ..Pool::new("p", Vec::new()) };
        let mut namespaces = BTreeMap::new();
        assert!(pool.admits("shop", &namespaces, &Labels::new()) && !pool.admits("other", &namespaces, &Labels::new()));
        namespaces.insert("other".to_owned(), labels(&[(NAME, "shop")]));
        assert!(pool.admits("other", &namespaces, &Labels::new()), "labels count, where they are known");
    }
}
