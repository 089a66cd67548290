//! What is to be written of one Service: its finalizer and its status, in the order that no address is given that would
//! not be taken back. Pure.
//!
//! Both are applied by the API server under one name (server-side apply), so that what is ours can be told from what
//! others wrote, and taken back alone. Every write names the version that it was decided on.

use k8s_openapi::api::core::v1::{LoadBalancerIngress, PortStatus, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ManagedFieldsEntry, Time};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use translate::Allotment;

/// The name under which is applied.
pub(in crate::kubernetes) const MANAGER: &str = "millrace";
/// What keeps a Service from going before its addresses are taken back, by the API's convention.
pub(in crate::kubernetes) const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";
/// Whether a Service has the addresses that it asks for.
const ADDRESSED: &str = "millrace.dev/Addressed";
/// Whether some of its ports cannot be served, by the API's convention.
const PORTS_ERROR: &str = "LoadBalancerPortsError";

/// The conditions that are ours.
pub(in crate::kubernetes) const CONDITIONS: [&str; 2] = [ADDRESSED, PORTS_ERROR];

/// A write. Each is the whole of what is ours there.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    /// The finalizer, or to take it away.
    Finalizer(bool),
    /// `status`; null: to take what is ours there away.
    Status(Value),
}

impl Step {
    /// What is applied to a Service of that version.
    pub fn body(&self, namespace: &str, name: &str, version: &str) -> Value {
        let metadata = json!({"namespace": namespace, "name": name, "resourceVersion": version});
        let mut body = json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata});
        match self {
            Self::Finalizer(true) => body["metadata"]["finalizers"] = json!([FINALIZER]),
            // What is applied no more is taken away.
            Self::Finalizer(false) | Self::Status(Value::Null) => {}
            Self::Status(status) => body["status"] = status.clone(),
        }
        body
    }
}

/// What is to be written, in order; `allotment`: what it is to have, where it is to have something of ours.
pub(super) fn steps(service: &Service, allotment: Option<&Allotment>, now: Timestamp) -> Vec<Step> {
    let has_finalizer = applied(service, None);
    let mut steps = Vec::new();
    let Some(allotment) = allotment else {
        if applied(service, Some("status")) {
            steps.push(Step::Status(Value::Null));
        }
        if has_finalizer {
            steps.push(Step::Finalizer(false));
        }
        return steps;
    };
    let given = !allotment.addresses.is_empty();
    if given && !has_finalizer {
        steps.push(Step::Finalizer(true));
    }
    let (ingress, conditions) = (ingress(allotment), conditions(service, allotment, now));
    let current = current_ingress(service);
    let same_conditions = same_conditions(&conditions, current_conditions(service));
    if !given && !current.is_empty() && !owns_ingress(service) {
        // Where there is nothing to give, another provider may.
        if !same_conditions {
            steps.push(Step::Status(json!({"conditions": conditions})));
        }
    } else if ingress != current || !same_conditions {
        steps.push(Step::Status(json!({"loadBalancer": {"ingress": ingress}, "conditions": conditions})));
    }
    if !given && has_finalizer {
        steps.push(Step::Finalizer(false));
    }
    steps
}

/// Whether something was applied under our name, to a subresource or to the Service itself.
fn applied(service: &Service, subresource: Option<&str>) -> bool {
    applications(service, subresource).next().is_some()
}

/// Whether the addresses in the status are as they were applied under our name.
pub(super) fn owns_ingress(service: &Service) -> bool {
    let ingress = "/f:status/f:loadBalancer/f:ingress";
    applications(service, Some("status"))
        .any(|entry| entry.fields_v1.as_ref().is_some_and(|fields| fields.0.pointer(ingress).is_some()))
}

fn applications<'s>(service: &'s Service, subresource: Option<&str>) -> impl Iterator<Item = &'s ManagedFieldsEntry> {
    let ours =
        service.metadata.managed_fields.iter().flatten().filter(|entry| entry.manager.as_deref() == Some(MANAGER));
    ours.filter(|entry| entry.operation.as_deref() == Some("Apply"))
        .filter(move |entry| entry.subresource.as_deref().filter(|name| !name.is_empty()) == subresource)
}

fn ingress(allotment: &Allotment) -> Vec<LoadBalancerIngress> {
    let ports: Vec<PortStatus> = allotment
        .ports
        .iter()
        .map(|port| PortStatus {
            port: port.port,
            protocol: port.protocol.clone(),
            error: port.error.map(str::to_owned),
        })
        .collect();
    let mode = if allotment.proxied { "Proxy" } else { "VIP" };
    let of_address = |ip: &std::net::IpAddr| LoadBalancerIngress {
        ip: Some(ip.to_string()),
        hostname: None,
        ip_mode: Some(mode.to_owned()),
        ports: (!ports.is_empty()).then(|| ports.clone()),
    };
    allotment.addresses.iter().map(of_address).collect()
}

/// What the status has.
pub(super) fn current_ingress(service: &Service) -> Vec<LoadBalancerIngress> {
    let status = service.status.as_ref();
    status.and_then(|status| status.load_balancer.as_ref()?.ingress.clone()).unwrap_or_default()
}

fn current_conditions(service: &Service) -> impl Iterator<Item = &Condition> {
    let all = service.status.iter().flat_map(|status| status.conditions.iter().flatten());
    all.filter(|condition| CONDITIONS.contains(&condition.type_.as_str()))
}

fn conditions(service: &Service, allotment: &Allotment, now: Timestamp) -> Vec<Condition> {
    let lacks: Vec<&str> = allotment.lacks.iter().map(|lack| lack.message.as_str()).collect();
    let mut conditions = vec![match allotment.lacks.first() {
        None => (ADDRESSED, "True", "Given", String::new()),
        Some(first) => (ADDRESSED, "False", first.reason.as_str(), lacks.join("; ")),
    }];
    if let Some(port) = allotment.ports.iter().find(|port| port.error.is_some()) {
        let message = format!(
            "port {}/{} cannot be served: endpoints see packets as they are in this `millrace.dev/mode`, expected \
             targetPort {0}",
            port.port, port.protocol
        );
        conditions.push((PORTS_ERROR, "True", "TargetPortDiffers", message));
    }
    let made = conditions.into_iter().map(|(type_, status, reason, message)| {
        let before = current_conditions(service).find(|before| before.type_ == type_ && before.status == status);
        Condition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message,
            last_transition_time: before.map_or(Time(now), |before| before.last_transition_time.clone()),
            observed_generation: None,
        }
    });
    made.collect()
}

fn same_conditions<'c>(made: &[Condition], current: impl Iterator<Item = &'c Condition>) -> bool {
    let mut current: Vec<&Condition> = current.collect();
    let mut made: Vec<&Condition> = made.iter().collect();
    current.sort_by(|a, b| a.type_.cmp(&b.type_));
    made.sort_by(|a, b| a.type_.cmp(&b.type_));
    let said = |all: &[&Condition]| -> Vec<(String, String, String, String)> {
        all.iter().map(|c| (c.type_.clone(), c.status.clone(), c.reason.clone(), c.message.clone())).collect()
    };
    said(&current) == said(&made)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ServiceStatus;
    use translate::{Lack, PortError, Reason};

    use super::super::allotment;
    use super::*;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    /// As it is after these steps were applied.
    fn after(steps: &[Step], before: &Service) -> Service {
        let mut service = before.clone();
        for step in steps {
            let (subresource, entry) = match step {
                Step::Finalizer(on) => (None, *on),
                Step::Status(status) => (Some("status".to_owned()), !status.is_null()),
            };
            let fields = service.metadata.managed_fields.get_or_insert_default();
            fields.retain(|field| field.subresource != subresource);
            if entry {
                let mut ours = json!({"manager": "millrace", "operation": "Apply", "subresource": subresource});
                if let Step::Status(Value::Object(status)) = step {
                    let fields: serde_json::Map<String, Value> =
                        status.iter().map(|(key, _)| (format!("f:{key}"), json!({"f:ingress": {}}))).collect();
                    ours["fieldsV1"] = json!({"f:status": fields});
                }
                fields.push(serde_json::from_value(ours).unwrap());
            }
            if let Step::Status(status) = step {
                let before = service.status.take();
                let mut now: ServiceStatus = serde_json::from_value(status.clone()).unwrap_or_default();
                if status.get("loadBalancer").is_none() && !status.is_null() {
                    now.load_balancer = before.and_then(|before| before.load_balancer);
                }
                service.status = Some(now);
            }
        }
        service
    }

    fn is_status(step: &Step) -> bool {
        matches!(step, Step::Status(_))
    }

    #[test]
    fn a_finalizer_comes_before_the_address_and_goes_after_it() {
        let new = Service::default();
        let given = steps(&new, Some(&allotment(&["203.0.113.1"], &[])), NOW);
        assert!(given[0] == Step::Finalizer(true) && is_status(&given[1]) && given.len() == 2, "{given:?}");
        let Step::Status(status) = &given[1] else { unreachable!() };
        let ingress = json!([{"ip": "203.0.113.1", "ipMode": "Proxy"}]);
        assert_eq!(
            (&status["loadBalancer"]["ingress"], &status["conditions"][0]["status"]),
            (&ingress, &json!("True"))
        );
        let web = after(&given, &new);
        assert_eq!(steps(&web, Some(&allotment(&["203.0.113.1"], &[])), NOW), [], "nothing is written twice");
        for taken in [None, Some(allotment(&[], &[]))] {
            let taken = steps(&web, taken.as_ref(), NOW);
            assert!(is_status(&taken[0]) && taken[1] == Step::Finalizer(false) && taken.len() == 2, "{taken:?}");
        }
        assert_eq!(steps(&new, None, NOW), []);
    }

    #[test]
    fn what_others_wrote_is_left_unless_the_service_is_ours() {
        let foreign: Service = serde_json::from_value(json!({
            "metadata": {"finalizers": [FINALIZER], "managedFields": [{"manager": "other", "operation": "Apply"},
                {"manager": "other", "operation": "Apply", "subresource": "status"}]},
            "status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.1"}]}}
        }))
        .unwrap();
        assert_eq!(steps(&foreign, None, NOW), []);
        let lacking = allotment(&[], &[]);
        let told = steps(&foreign, Some(&lacking), NOW);
        let Step::Status(status) = &told[0] else { panic!("{told:?}") };
        assert!(status.get("loadBalancer").is_none() && told.len() == 1, "another may give: {told:?}");
        assert_eq!(steps(&after(&told, &foreign), Some(&lacking), NOW), [], "and goes on doing so");
        let ours = steps(&foreign, Some(&allotment(&["203.0.113.1"], &[])), NOW);
        assert!(ours[0] == Step::Finalizer(true) && is_status(&ours[1]), "{ours:?}");
    }

    #[test]
    fn the_time_of_a_condition_is_when_it_turned() {
        let lack = Lack { reason: Reason::PoolEmpty, message: "none".into() };
        let lacking = Allotment { lacks: vec![lack], ..allotment(&[], &[]) };
        let web = after(&steps(&Service::default(), Some(&lacking), NOW), &Service::default());
        let later = Timestamp::MAX;
        let other = Lack { reason: Reason::NoPool, message: "other".into() };
        let still = steps(&web, Some(&Allotment { lacks: vec![other], ..allotment(&[], &[]) }), later);
        let Step::Status(status) = &still[0] else { panic!("{still:?}") };
        let time = |status: &Value| status["conditions"][0]["lastTransitionTime"].clone();
        assert_eq!(time(status), json!("1970-01-01T00:00:00Z"));
        assert_eq!(status["conditions"][0]["reason"], "NoPool");
        let given = steps(&web, Some(&allotment(&["203.0.113.1"], &[])), later);
        let Step::Status(status) = &given[1] else { panic!("{given:?}") };
        assert_ne!(time(status), json!("1970-01-01T00:00:00Z"));
    }

    #[test]
    fn direct_modes_say_so_and_a_port_that_cannot_be_served_is_marked() {
        let port = |port, error| PortError { port, protocol: "TCP".into(), error };
        let ports = vec![port(80, Some("millrace.dev/TargetPortDiffers")), port(443, None)];
        let direct = Allotment { proxied: false, ports, ..allotment(&["203.0.113.1"], &[]) };
        let written = steps(&Service::default(), Some(&direct), NOW);
        let Step::Status(status) = &written[1] else { panic!("{written:?}") };
        let entry = &status["loadBalancer"]["ingress"][0];
        assert_eq!(entry["ipMode"], "VIP");
        assert_eq!(entry["ports"][0]["error"], "millrace.dev/TargetPortDiffers");
        assert_eq!(entry["ports"][1], json!({"port": 443, "protocol": "TCP"}));
        assert_eq!(status["conditions"][1]["type"], "LoadBalancerPortsError");
        assert_eq!(steps(&after(&written, &Service::default()), Some(&direct), NOW), []);
    }

    #[test]
    fn a_body_names_the_version_and_nothing_that_is_not_ours() {
        let body = Step::Finalizer(false).body("ns", "web", "7");
        let metadata = json!({"namespace": "ns", "name": "web", "resourceVersion": "7"});
        assert_eq!(body, json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata}));
        assert_eq!(Step::Status(Value::Null).body("ns", "web", "7"), body);
        assert_eq!(Step::Finalizer(true).body("ns", "web", "7")["metadata"]["finalizers"], json!([FINALIZER]));
    }
}
