//! Pools that a cluster has as objects: `AddressPool`, by which all nodes have the same (deploy/kubernetes/crds).

use std::borrow::Cow;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::ClusterResourceScope;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use kube::Resource;
use serde::{Deserialize, Serialize};
use translate::{AddressRange, Finding, Located, Pool, Selector, Severity};

use crate::config::Config;

/// A pool as an object of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AddressPool {
    /// Its name and version.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What it says.
    pub spec: AddressPoolSpec,
}

/// What a pool says; the meaning of each field is [`Pool`]'s.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AddressPoolSpec {
    /// ADDRESS, ADDRESS/PREFIX or FIRST-LAST.
    pub addresses: Vec<String>,
    /// Higher ones are tried first; 0 where it is not written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<i32>,
    /// Whether it gives to Services that ask for no address; so where it is not written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_assign: Option<bool>,
    /// Which namespaces' Services it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,
    /// Which Services it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_selector: Option<LabelSelector>,
}

impl Resource for AddressPool {
    type DynamicType = ();
    type Scope = ClusterResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "AddressPool".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        "millrace.dev".into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1alpha1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "addresspools".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// The pools that objects make, and what is wrong with them. A range that is none is left out; a pool with a selector
/// that is none is for nobody.
pub(super) fn pools(objects: &[Arc<Located<AddressPool>>]) -> (Vec<Pool>, Vec<Finding>) {
    let (mut pools, mut findings) = (Vec::new(), Vec::new());
    for located in objects {
        let AddressPool { metadata, spec } = &located.object;
        let mut wrong = |field: &str, message| findings.push(located.finding(Severity::Error, field, message));
        let mut addresses: Vec<AddressRange> = Vec::new();
        for (at, range) in spec.addresses.iter().enumerate() {
            match range.parse() {
                Ok(range) => addresses.push(range),
                Err(error) => wrong(&format!("spec.addresses[{at}]"), format!("{error}")),
            }
        }
        let mut selector = |field: &str, written: &Option<LabelSelector>| {
            let made = written.as_ref().map_or(Ok(Selector::default()), Selector::of);
            made.map_err(|message| wrong(field, message)).ok()
        };
        let namespaces = selector("spec.namespaceSelector", &spec.namespace_selector);
        let services = selector("spec.serviceSelector", &spec.service_selector);
        let (Some(namespaces), Some(services)) = (namespaces, services) else { continue };
        pools.push(Pool {
            priority: spec.priority.unwrap_or_default(),
            auto_assign: spec.auto_assign.unwrap_or(true),
            namespaces,
            services,
            ..Pool::new(metadata.name.clone().unwrap_or_default(), addresses)
        });
    }
    (pools, findings)
}

/// What the cluster's ranges of ClusterIPs are.
pub(super) fn service_ranges(objects: &[Arc<Located<ServiceCIDR>>]) -> Vec<(IpNet, String)> {
    let ranges = objects.iter().flat_map(|located| {
        let name = located.object.metadata.name.as_deref().unwrap_or_default();
        let cidrs = located.object.spec.iter().flat_map(|spec| spec.cidrs.iter().flatten());
        cidrs.filter_map(move |range| Some((range.parse().ok()?, format!("of the Services' range {name}"))))
    });
    ranges.collect()
}

/// The pools of the configuration, then the cluster's. Of two of one name the configuration's counts. A rule of `announce`
/// for a pool that is none of them is told.
#[must_use]
pub fn merged(config: &Config, of_cluster: &[Pool]) -> (Vec<Pool>, Vec<Finding>) {
    let mut pools = config.pools.clone();
    let mut findings = Vec::new();
    for pool in of_cluster {
        if config.pools.iter().any(|other| other.name == pool.name) {
            findings.push(Finding {
                file: format!("AddressPool {}", pool.name),
                line: 0,
                field: "metadata.name".to_owned(),
                message: format!("`{}` is a pool of the configuration, which counts; expected another name", pool.name),
                severity: Severity::Error,
            });
        } else {
            pools.push(pool.clone());
        }
    }
    for name in config.announce.iter().filter_map(|rule| rule.pool.as_ref()) {
        if !pools.iter().any(|pool| pool.name == *name) {
            findings.push(Finding {
                file: config.path.display().to_string(),
                line: config.line("announce"),
                field: "announce".to_owned(),
                message: format!("there is no pool `{name}`, expected one of `pools` or an AddressPool"),
                severity: Severity::Warning,
            });
        }
    }
    (pools, findings)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::config::Announce;

    fn located(name: &str, spec: Value) -> Arc<Located<AddressPool>> {
        let object = json!({"apiVersion": "millrace.dev/v1alpha1", "kind": "AddressPool",
            "metadata": {"name": name}, "spec": spec});
        let object = serde_json::from_value(object).expect("an AddressPool");
        Arc::new(Located::of_api(object, "AddressPool", None, name))
    }

    #[test]
    fn what_an_object_does_not_say_is_as_in_the_configuration() {
        let (made, findings) = pools(&[located("a", json!({"addresses": ["10.0.0.0/28", "2001:db8::1-2001:db8::5"]}))]);
        assert_eq!(findings, []);
        let ranges = ["10.0.0.0/28", "2001:db8::1-2001:db8::5"].map(|range| range.parse().expect("a range"));
        assert_eq!(made, [Pool::new("a", ranges.to_vec())]);
    }

    #[test]
    fn a_range_that_is_none_is_left_out_and_a_selector_that_is_none_is_for_nobody() {
        let wrong = json!({"matchExpressions": [{"key": "a", "operator": "Has"}]});
        let all = [
            located(
                "a",
                json!({"addresses": ["10.0.0.9-10.0.0.1", "10.0.1.0/24"], "priority": 3, "autoAssign": false}),
            ),
            located("b", json!({"addresses": ["10.0.2.0/24"], "serviceSelector": wrong})),
        ];
        let (made, findings) = pools(&all);
        assert_eq!(made.len(), 1);
        assert!(made[0].addresses.len() == 1 && made[0].priority == 3 && !made[0].auto_assign);
        let said: Vec<String> = findings.iter().map(ToString::to_string).collect();
        assert!(said[0].starts_with("AddressPool a: spec.addresses[0]: `10.0.0.9-10.0.0.1`"), "{said:?}");
        assert!(said[1].starts_with("AddressPool b: spec.serviceSelector: `Has`"), "{said:?}");
    }

    #[test]
    fn of_two_pools_of_one_name_the_configurations_counts() {
        let range = |text: &str| vec![text.parse().expect("a range")];
        let config = Config { pools: vec![Pool::new("a", range("10.0.0.0/28"))], ..Config::default() };
        let (all, findings) =
            merged(&config, &[Pool::new("a", range("10.1.0.0/28")), Pool::new("b", range("10.2.0.0/28"))]);
        assert_eq!(all, [config.pools[0].clone(), Pool::new("b", range("10.2.0.0/28"))]);
        assert!(findings.len() == 1 && findings[0].to_string().starts_with("AddressPool a: metadata.name: "));
        let rule = |pool: &str| Announce { pool: Some(pool.to_owned()), interfaces: Vec::new(), l2: true };
        let config = Config { announce: ["a", "b", "c"].map(rule).into(), ..config };
        let (_, findings) = merged(&config, &[Pool::new("b", range("10.2.0.0/28"))]);
        assert!(findings.len() == 1 && findings[0].message.starts_with("there is no pool `c`"), "{findings:?}");
    }
}
