//! Which kind a document is, and whether one that is not ours was meant to be.

use super::schema::{comment_hint, nearest};

/// The kinds that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Service,
    Endpoints,
    EndpointSlice,
    Node,
    /// `List`, or the list of one kind.
    List(Option<&'static str>),
}

/// What becomes of a document of some kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Recognised {
    Ours(Kind),
    /// Not ours: skipped and counted.
    Skip,
    /// Nearly ours: (`kind` or `apiVersion`, what is wrong and what was expected).
    Nearly(&'static str, String),
}

const KINDS: [(&str, &str, Kind); 9] = [
    ("Service", "v1", Kind::Service),
    ("Endpoints", "v1", Kind::Endpoints),
    ("EndpointSlice", "discovery.k8s.io/v1", Kind::EndpointSlice),
    ("Node", "v1", Kind::Node),
    ("List", "v1", Kind::List(None)),
    ("ServiceList", "v1", Kind::List(Some("Service"))),
    ("EndpointsList", "v1", Kind::List(Some("Endpoints"))),
    ("EndpointSliceList", "discovery.k8s.io/v1", Kind::List(Some("EndpointSlice"))),
    ("NodeList", "v1", Kind::List(Some("Node"))),
];

impl Kind {
    /// The `apiVersion` that belongs to a kind of ours.
    pub fn api_version_of(kind: &str) -> Option<&'static str> {
        KINDS.iter().find(|(name, ..)| *name == kind).map(|(_, version, _)| *version)
    }
}

/// Recognises a document by its `kind` and `apiVersion`.
pub(super) fn recognise(kind: &str, api_version: Option<&str>) -> Recognised {
    let Some((name, version, ours)) = KINDS.iter().find(|(name, ..)| *name == kind).copied() else {
        return unknown_kind(kind, api_version);
    };
    match api_version {
        None => Recognised::Nearly("apiVersion", format!("missing, expected `{version}` for kind {name}")),
        Some(written) if written == version => Recognised::Ours(ours),
        Some(written) if foreign(written) => Recognised::Skip,
        Some(written) => {
            let hint = comment_hint(written);
            Recognised::Nearly("apiVersion", format!("`{written}`, expected `{version}` for kind {name}{hint}"))
        }
    }
}

fn unknown_kind(kind: &str, api_version: Option<&str>) -> Recognised {
    let names: Vec<&str> = KINDS.iter().map(|(name, ..)| *name).collect();
    let bare = kind.split(['#', '/', ' ', '\t']).next().unwrap_or(kind);
    let slips = |name: &str| strsim::damerau_levenshtein(&bare.to_lowercase(), &name.to_lowercase());
    // A kind of another vendor may well be called nearly so; one without a vendor is a slip of the pen.
    let meant = nearest(bare, &names).filter(|name| slips(name) <= 1 || name.len() > 8);
    match meant {
        Some(name) if !api_version.is_some_and(foreign) => {
            let hint = comment_hint(kind);
            Recognised::Nearly("kind", format!("`{kind}`, did you mean `{name}`?{hint}"))
        }
        _ => Recognised::Skip,
    }
}

/// Whether the API group is another vendor's: a domain, and not one of Kubernetes itself.
fn foreign(api_version: &str) -> bool {
    let bare = api_version.split_whitespace().next().unwrap_or_default();
    let Some((group, _)) = bare.split_once('/') else { return false };
    let group = group.to_lowercase();
    group.contains('.') && !group.ends_with("k8s.io") && nearest(&group, &["discovery.k8s.io"]).is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(kind: &str, version: Option<&str>) -> Option<&'static str> {
        match recognise(kind, version) {
            Recognised::Nearly(field, _) => Some(field),
            _ => None,
        }
    }

    #[test]
    fn a_kind_or_version_that_nearly_names_ours_is_told_apart_from_others() {
        let nearly = [
            ("Endpoints    // must match", Some("v1"), "kind"),
            ("service", Some("v1"), "kind"),
            ("Sevice", Some("v1"), "kind"),
            ("Endpoint", Some("v1"), "kind"),
            ("Endpointslice", Some("discovery.k8s.io/v1"), "kind"),
            ("Service", Some("V1"), "apiVersion"),
            ("Service", Some("v1 // core"), "apiVersion"),
            ("Service", Some("apps/v1"), "apiVersion"),
            ("Service", None, "apiVersion"),
            ("EndpointSlice", Some("discovery.k8s.io/v1beta1"), "apiVersion"),
            ("EndpointSlice", Some("v1"), "apiVersion"),
        ];
        for (kind, version, wrong) in nearly {
            assert_eq!(field(kind, version), Some(wrong), "{kind} {version:?}");
        }
        let skipped = [
            ("Deployment", "apps/v1"),
            ("ConfigMap", "v1"),
            ("Secret", "v1"),
            ("Pod", "v1"),
            ("Ingress", "networking.k8s.io/v1"),
            ("Role", "rbac.authorization.k8s.io/v1"),
            ("ServiceAccount", "v1"),
            ("ServiceMonitor", "monitoring.coreos.com/v1"),
            ("Service", "serving.knative.dev/v1"),
            ("PodList", "v1"),
            ("RoleList", "rbac.authorization.k8s.io/v1"),
            ("APIService", "apiregistration.k8s.io/v1"),
        ];
        for (kind, version) in skipped {
            assert_eq!(recognise(kind, Some(version)), Recognised::Skip, "{kind}");
        }
        assert_eq!(recognise("Service", Some("v1")), Recognised::Ours(Kind::Service));
    }
}
