//! What is told of a Service as events of the API: given, released, and why it lacks an address. Pure.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{ObjectReference, Service};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use translate::Allotment;

use super::steps::{current_ingress, owns_ingress};

/// Who tells.
const CONTROLLER: &str = "millrace.dev/allocator";
/// A shortage that lasts is told again before its event is forgotten: API servers keep them for an hour.
const AGAIN: Duration = Duration::from_secs(1800);
/// The longest note that the API takes.
const NOTE: usize = 1024;

/// Something to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct News {
    pub kind: &'static str,
    pub reason: &'static str,
    pub note: String,
}

/// What changes for a Service when what it is to have is written: addresses that come and go. What others wrote is not
/// released by us.
pub(super) fn news(service: &Service, allotment: Option<&Allotment>) -> Vec<News> {
    let current = if owns_ingress(service) { current_ingress(service) } else { Vec::new() };
    let before: Vec<IpAddr> = current.iter().filter_map(|entry| entry.ip.as_ref()?.parse().ok()).collect();
    let now = allotment.map(|allotment| allotment.addresses.as_slice()).unwrap_or_default();
    let list = |all: &[IpAddr], but: &[IpAddr]| -> Vec<String> {
        all.iter().filter(|ip| !but.contains(ip)).map(ToString::to_string).collect()
    };
    let mut news = Vec::new();
    if allotment.is_none() && before.is_empty() {
        // With the type the API server takes them away itself.
        let note = "its addresses are released".to_owned();
        news.push(News { kind: "Normal", reason: "AddressReleased", note });
    }
    for (reason, verb, addresses) in
        [("AddressReleased", "released", list(&before, now)), ("AddressGiven", "given", list(now, &before))]
    {
        if !addresses.is_empty() {
            news.push(News { kind: "Normal", reason, note: format!("{} {verb}", addresses.join(", ")) });
        }
    }
    news
}

/// What was told of shortages, to be told again only after a while or where it changed.
#[derive(Debug, Default)]
pub(super) struct Told {
    of: HashMap<(String, String), (Vec<News>, Instant)>,
}

impl Told {
    /// What is to be told of a shortage.
    pub fn shortage(&mut self, allotment: &Allotment, now: Instant) -> Vec<News> {
        let key = (allotment.namespace.clone(), allotment.name.clone());
        let lacks: Vec<News> = allotment
            .lacks
            .iter()
            .map(|lack| News { kind: "Warning", reason: lack.reason.as_str(), note: lack.message.clone() })
            .collect();
        if lacks.is_empty() {
            self.of.remove(&key);
            return lacks;
        }
        let known = self.of.get(&key);
        if known.is_some_and(|(known, at)| *known == lacks && now.saturating_duration_since(*at) < AGAIN) {
            return Vec::new();
        }
        self.of.insert(key, (lacks.clone(), now));
        lacks
    }

    /// Forgets Services that are not among these any more.
    pub fn retain(&mut self, is_there: impl Fn(&(String, String)) -> bool) {
        self.of.retain(|key, _| is_there(key));
    }
}

/// The event; `unique` tells events of one Service apart.
pub(super) fn event(service: &Service, news: News, node: &str, now: Timestamp, unique: u64) -> Event {
    let metadata = &service.metadata;
    let (namespace, name) = (metadata.namespace.clone(), metadata.name.clone().unwrap_or_default());
    let mut note = news.note;
    while note.len() > NOTE {
        note.pop();
    }
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{name}.{:x}{unique:x}", now.as_nanosecond())),
            namespace: namespace.clone(),
            ..ObjectMeta::default()
        },
        action: Some("Allocate".to_owned()),
        event_time: Some(MicroTime(now)),
        note: Some(note),
        reason: Some(news.reason.to_owned()),
        regarding: Some(ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Service".to_owned()),
            name: Some(name),
            namespace,
            uid: metadata.uid.clone(),
            ..ObjectReference::default()
        }),
        reporting_controller: Some(CONTROLLER.to_owned()),
        reporting_instance: Some(node.chars().take(128).collect()),
        type_: Some(news.kind.to_owned()),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use translate::Reason;

    use super::super::allotment;
    use super::*;

    #[test]
    fn what_comes_and_goes_is_told() {
        let ours = json!({"manager": "millrace", "operation": "Apply", "subresource": "status",
            "fieldsV1": {"f:status": {"f:loadBalancer": {"f:ingress": {}}}}});
        let mut has: Service = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "default", "managedFields": [ours]},
            "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}, {"ip": "203.0.113.2"}]}}
        }))
        .unwrap();
        let told = |has: &Service, allotment: Option<&Allotment>| -> Vec<String> {
            news(has, allotment).into_iter().map(|news| format!("{} {}", news.reason, news.note)).collect()
        };
        assert_eq!(told(&has, None), ["AddressReleased 203.0.113.1, 203.0.113.2 released"]);
        let other = allotment(&["203.0.113.2", "203.0.113.3"], &[]);
        assert_eq!(
            told(&has, Some(&other)),
            ["AddressReleased 203.0.113.1 released", "AddressGiven 203.0.113.3 given"]
        );
        assert_eq!(told(&has, Some(&allotment(&["203.0.113.1", "203.0.113.2"], &[]))), [""; 0]);
        has.metadata.managed_fields = None;
        let told = news(&has, Some(&other));
        assert!(told.len() == 1 && told[0].reason == "AddressGiven", "what others wrote: {told:?}");
        assert_eq!(news(&has, None)[0].reason, "AddressReleased");
    }

    #[test]
    fn a_shortage_is_told_once_until_it_changes_ends_or_lasts() {
        let mut told = Told::default();
        let (start, empty) = (Instant::now(), allotment(&[], &[Reason::PoolEmpty]));
        assert_eq!(told.shortage(&empty, start).len(), 1);
        assert_eq!(told.shortage(&empty, start + AGAIN / 2).len(), 0);
        assert_eq!(told.shortage(&allotment(&[], &[Reason::NoPool]), start + AGAIN / 2).len(), 1);
        assert_eq!(told.shortage(&empty, start + AGAIN / 2).len(), 1);
        assert_eq!(told.shortage(&empty, start + AGAIN * 2).len(), 1);
        assert_eq!(told.shortage(&allotment(&["203.0.113.1"], &[]), start + AGAIN * 2).len(), 0);
        assert_eq!(told.shortage(&empty, start + AGAIN * 2).len(), 1);
        told.retain(|_| false);
        assert_eq!(told.shortage(&empty, start + AGAIN * 2).len(), 1);
    }

    #[test]
    fn an_event_is_of_the_service_and_fits() {
        let service: Service =
            serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "shop", "uid": "u"}})).unwrap();
        let news = News { kind: "Warning", reason: "PoolEmpty", note: "é".repeat(2000) };
        let event = event(&service, news, "n1", Timestamp::UNIX_EPOCH, 1);
        assert_eq!(event.metadata.namespace.as_deref(), Some("shop"));
        let regarding = event.regarding.unwrap();
        assert_eq!((regarding.kind.as_deref(), regarding.uid.as_deref()), (Some("Service"), Some("u")));
        assert!(event.note.unwrap().len() <= NOTE);
    }
}
