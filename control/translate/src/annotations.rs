//! The `millrace.dev/` annotations of a Service: what each may say, and what it means.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::jiff::SignedDuration;
use lb::model::{Algorithm, Mode, TABLE_SIZES};

use crate::finding::{Finding, Severity};
use crate::listing::{CheckKind, HealthCheck};
use crate::manifest::nearest;
use crate::objects::Located;

/// What all keys of ours begin with.
pub(crate) const PREFIX: &str = "millrace.dev/";

const KEYS: [&str; 10] = [
    "addresses",
    "algorithm",
    "drain",
    "health-check",
    "mode",
    "share",
    "table-size",
    "topology-keys",
    "udp-timeout",
    "weights",
];
const MAX_DURATION: Duration = Duration::from_secs(7 * 86400);

/// A key of the legacy topology rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TopologyKey {
    /// `kubernetes.io/hostname`.
    Hostname,
    /// `topology.kubernetes.io/zone`.
    Zone,
    /// `topology.kubernetes.io/region`.
    Region,
    /// `*`.
    Any,
}

/// What the annotations of one Service say.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Annotations {
    pub algorithm: Option<Algorithm>,
    pub mode: Option<Mode>,
    pub weights: BTreeMap<IpAddr, u16>,
    pub health_check: Option<HealthCheck>,
    pub drain: Option<Duration>,
    pub udp_timeout: Option<Duration>,
    pub addresses: Vec<IpAddr>,
    pub share: Option<String>,
    pub topology_keys: Option<Vec<TopologyKey>>,
    pub table_size: Option<usize>,
}

/// A key that is unknown or says what cannot be: (the key, what it says and what was expected).
pub(crate) type Wrong = (String, String);

/// Reads the annotations of ours among all of an object; those of others are left alone.
pub(crate) fn parse(all: &BTreeMap<String, String>) -> (Annotations, Vec<Wrong>) {
    let (mut annotations, mut wrong) = (Annotations::default(), Vec::new());
    for (key, value) in all {
        let Some(name) = key.strip_prefix(PREFIX) else { continue };
        if let Err(message) = set(&mut annotations, name, value.trim()) {
            wrong.push((key.clone(), message));
        }
    }
    (annotations, wrong)
}

/// What is wrong with the annotations of a Service that an API server gave, which knows nothing of them.
#[must_use]
pub fn judge_annotations(service: &Located<Service>) -> Vec<Finding> {
    let metadata = &service.object.metadata;
    let wrong = metadata.annotations.as_ref().map(|all| parse(all).1).unwrap_or_default();
    let finding = |(key, message)| service.finding(Severity::Error, &format!("metadata.annotations[{key}]"), message);
    wrong.into_iter().map(finding).collect()
}

fn set(annotations: &mut Annotations, name: &str, value: &str) -> Result<(), String> {
    match name {
        "algorithm" => annotations.algorithm = Some(algorithm(value)?),
        "mode" => annotations.mode = Some(mode(value)?),
        "weights" => annotations.weights = weights(value)?,
        "health-check" => annotations.health_check = Some(health_check(value)?),
        "drain" => annotations.drain = Some(duration(value)?),
        "udp-timeout" => annotations.udp_timeout = Some(duration(value)?),
        "addresses" => annotations.addresses = addresses(value)?,
        "share" => annotations.share = Some(word(value)?),
        "topology-keys" => annotations.topology_keys = Some(topology_keys(value)?),
        "table-size" => annotations.table_size = Some(table_size(value)?),
        _ => {
            return Err(match nearest(name, &KEYS) {
                Some(key) => format!("unknown annotation, did you mean `{PREFIX}{key}`?"),
                None => format!("unknown annotation, expected one of {}", KEYS.join(", ")),
            });
        }
    }
    Ok(())
}

fn algorithm(value: &str) -> Result<Algorithm, String> {
    Ok(match value {
        "maglev" => Algorithm::Maglev,
        "round-robin" => Algorithm::RoundRobin,
        "random" => Algorithm::Random,
        "least-connections" => Algorithm::LeastConnections,
        "source-hash" => Algorithm::SourceHash,
        _ => {
            let names = "maglev, round-robin, random, least-connections or source-hash";
            return Err(format!("`{value}`, expected {names}"));
        }
    })
}

/// The word of an algorithm.
pub(crate) fn algorithm_name(algorithm: Algorithm) -> &'static str {
    match algorithm {
        Algorithm::Maglev => "maglev",
        Algorithm::RoundRobin => "round-robin",
        Algorithm::Random => "random",
        Algorithm::LeastConnections => "least-connections",
        Algorithm::SourceHash => "source-hash",
    }
}

/// Modes and their words, in `millrace.dev/mode` and in the configuration.
pub const MODES: [(Mode, &str); 5] = [
    (Mode::Nat, "nat"),
    (Mode::Preserve, "preserve"),
    (Mode::DsrL2, "dsr-l2"),
    (Mode::DsrIpip, "dsr-ipip"),
    (Mode::DsrGue, "dsr-gue"),
];

/// The word of a mode.
#[must_use]
pub fn mode_name(mode: Mode) -> &'static str {
    MODES.iter().find(|(known, _)| *known == mode).map_or("", |(_, word)| word)
}

fn mode(value: &str) -> Result<Mode, String> {
    let known = MODES.iter().find(|(_, word)| *word == value).map(|(mode, _)| *mode);
    known.ok_or_else(|| format!("`{value}`, expected nat, preserve, dsr-l2, dsr-ipip or dsr-gue"))
}

fn weights(value: &str) -> Result<BTreeMap<IpAddr, u16>, String> {
    let mut weights = BTreeMap::new();
    for item in value.split(',').map(str::trim).filter(|item| !item.is_empty()) {
        let wrong = || format!("`{item}`, expected ADDRESS=WEIGHT with a weight from 0 to 65535");
        let (address, weight) = item.split_once('=').ok_or_else(wrong)?;
        let address = address.trim().parse().map_err(|_| wrong())?;
        let weight = weight.trim().parse().map_err(|_| wrong())?;
        if weights.insert(address, weight).is_some() {
            return Err(format!("`{address}` a second time, expected each address once"));
        }
    }
    Ok(weights)
}

fn health_check(value: &str) -> Result<HealthCheck, String> {
    let mut parts = value.split(';').map(str::trim);
    let what = parts.next().unwrap_or_default();
    let kind = match what.strip_prefix("http:") {
        Some(path) if path.starts_with('/') && !path.contains(char::is_whitespace) => CheckKind::Http(path.to_owned()),
        Some(path) => return Err(format!("`{path}`, expected a path that begins with `/`")),
        None if what == "tcp" => CheckKind::Tcp,
        None => return Err(format!("`{what}`, expected tcp or http:PATH")),
    };
    let seconds = Duration::from_secs;
    let mut check = HealthCheck { kind, interval: seconds(5), timeout: seconds(1), up: 2, down: 3 };
    for part in parts.filter(|part| !part.is_empty()) {
        let wrong = || format!("`{part}`, expected interval=, timeout=, up= or down= with a value");
        let (key, value) = part.split_once('=').ok_or_else(wrong)?;
        match key.trim() {
            "interval" => check.interval = duration(value)?,
            "timeout" => check.timeout = duration(value)?,
            "up" => check.up = count(value)?,
            "down" => check.down = count(value)?,
            _ => return Err(wrong()),
        }
    }
    Ok(check)
}

fn count(value: &str) -> Result<u32, String> {
    let number = value.trim().parse().ok().filter(|number| (1..=1000).contains(number));
    number.ok_or_else(|| format!("`{value}`, expected a number from 1 to 1000"))
}

fn duration(value: &str) -> Result<Duration, String> {
    let parsed = value.trim().parse::<SignedDuration>().ok().and_then(|signed| Duration::try_from(signed).ok());
    let fits = |duration: &Duration| (Duration::from_millis(1)..=MAX_DURATION).contains(duration);
    parsed
        .filter(fits)
        .ok_or_else(|| format!("`{value}`, expected a duration such as 500ms, 30s or 5m, at most 7 days"))
}

fn addresses(value: &str) -> Result<Vec<IpAddr>, String> {
    let mut addresses = Vec::new();
    for item in value.split(',').map(str::trim) {
        let address = item.parse().map_err(|_| format!("`{item}`, expected an IP address"))?;
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    Ok(addresses)
}

fn word(value: &str) -> Result<String, String> {
    let sound = !value.is_empty() && value.len() <= 63 && !value.contains(char::is_whitespace);
    sound.then(|| value.to_owned()).ok_or_else(|| format!("`{value}`, expected a word of at most 63 characters"))
}

/// The legacy list, from the manifest's field or the annotation.
fn topology_keys(value: &str) -> Result<Vec<TopologyKey>, String> {
    let mut keys = Vec::new();
    for item in value.split(',').map(str::trim).filter(|item| !item.is_empty()) {
        let key = match item {
            "kubernetes.io/hostname" => TopologyKey::Hostname,
            "topology.kubernetes.io/zone" => TopologyKey::Zone,
            "topology.kubernetes.io/region" => TopologyKey::Region,
            "*" => TopologyKey::Any,
            _ => {
                let known = "kubernetes.io/hostname, topology.kubernetes.io/zone, topology.kubernetes.io/region or `*`";
                return Err(format!("`{item}`, expected {known}"));
            }
        };
        if keys.contains(&key) {
            return Err(format!("`{item}` a second time, expected each key once"));
        }
        if keys.last() == Some(&TopologyKey::Any) {
            return Err(format!("`{item}` after `*`, expected `*` last"));
        }
        keys.push(key);
    }
    Ok(keys)
}

fn table_size(value: &str) -> Result<usize, String> {
    let size = value.parse().ok().filter(|size| TABLE_SIZES.contains(size));
    size.ok_or_else(|| format!("`{value}`, expected one of {TABLE_SIZES:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(key: &str, value: &str) -> Result<Annotations, String> {
        let (annotations, mut wrong) = parse(&BTreeMap::from([(format!("{PREFIX}{key}"), value.to_owned())]));
        wrong.pop().map_or(Ok(annotations), |(_, message)| Err(message))
    }

    #[test]
    fn each_annotation_says_what_it_may() {
        assert_eq!(one("algorithm", "least-connections").unwrap().algorithm, Some(Algorithm::LeastConnections));
        assert_eq!(one("mode", "preserve").unwrap().mode, Some(Mode::Preserve));
        let weights = one("weights", "10.0.0.1=5, 10.0.0.2=0,2001:db8::1=65535").unwrap().weights;
        assert_eq!(weights.into_values().collect::<Vec<_>>(), [5, 0, 65535]);
        let check = one("health-check", "http:/healthz;interval=500ms;timeout=1s;up=1;down=4").unwrap().health_check;
        let millis = Duration::from_millis;
        let kind = CheckKind::Http("/healthz".into());
        assert_eq!(check, Some(HealthCheck { kind, interval: millis(500), timeout: millis(1000), up: 1, down: 4 }));
        assert_eq!(one("drain", "5m").unwrap().drain, Some(Duration::from_secs(300)));
        assert_eq!(one("udp-timeout", "1m30s").unwrap().udp_timeout, Some(Duration::from_secs(90)));
        assert_eq!(one("addresses", "192.0.2.1, 2001:db8::1").unwrap().addresses.len(), 2);
        assert_eq!(one("share", "dns").unwrap().share.as_deref(), Some("dns"));
        let keys = one("topology-keys", "kubernetes.io/hostname,*").unwrap().topology_keys;
        assert_eq!(keys, Some(vec![TopologyKey::Hostname, TopologyKey::Any]));
        assert_eq!(one("table-size", "65537").unwrap().table_size, Some(65537));
    }

    #[test]
    fn a_value_that_cannot_be_is_refused_with_what_was_expected() {
        let cases = [
            ("algorithm", "fastest"),
            ("mode", "dsr"),
            ("weights", "10.0.0.1=65536"),
            ("weights", "10.0.0.1:5"),
            ("health-check", "udp"),
            ("health-check", "http:healthz"),
            ("health-check", "tcp;every=5s"),
            ("drain", "30"),
            ("drain", "-5s"),
            ("udp-timeout", "soon"),
            ("addresses", "10.0.0"),
            ("share", "two words"),
            ("topology-keys", "*,kubernetes.io/hostname"),
            ("topology-keys", "rack"),
            ("table-size", "1000"),
        ];
        for (key, value) in cases {
            let message = one(key, value).expect_err(value);
            assert!(message.contains("expected"), "{key}: {message}");
        }
        for (mode, word) in MODES {
            assert_eq!(one("mode", word).unwrap().mode, Some(mode));
        }
        assert!(one("algoritm", "maglev").unwrap_err().contains("did you mean `millrace.dev/algorithm`?"));
    }

    #[test]
    fn annotations_of_others_are_left_alone() {
        let all = BTreeMap::from([("metallb.io/address-pool".to_owned(), "x".to_owned())]);
        assert_eq!(parse(&all), (Annotations::default(), vec![]));
    }
}
