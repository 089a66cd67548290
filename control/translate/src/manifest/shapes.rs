//! The fields of Service, Endpoints, EndpointSlice and their metadata, as the API of Kubernetes 1.36 has them, with
//! `topologyKeys` (1.17 to 1.21) beside them.

use super::schema::Shape;
use super::schema::Shape::{Address, Any, Boolean, Fields, List, Number, NumberOrText, Text, Texts, Word};

const PORT: Shape = Number(1, 65535);
const PROTOCOL: Shape = Word(&["TCP", "UDP", "SCTP"]);
const OBJECT_REFERENCE: Shape = Fields(
    &[
        ("apiVersion", Text),
        ("fieldPath", Text),
        ("kind", Text),
        ("name", Text),
        ("namespace", Text),
        ("resourceVersion", Text),
        ("uid", Text),
    ],
    &[],
);

const METADATA: Shape = Fields(
    &[
        ("annotations", Texts),
        ("clusterName", Any),
        ("creationTimestamp", Any),
        ("deletionGracePeriodSeconds", Any),
        ("deletionTimestamp", Any),
        ("finalizers", Any),
        ("generateName", Any),
        ("generation", Any),
        ("labels", Texts),
        ("managedFields", Any),
        ("name", Text),
        ("namespace", Text),
        ("ownerReferences", Any),
        ("resourceVersion", Any),
        ("selfLink", Any),
        ("uid", Any),
    ],
    &["name"],
);

const SERVICE_PORT: Shape = Fields(
    &[
        ("appProtocol", Text),
        ("name", Text),
        ("nodePort", Number(0, 65535)),
        ("port", PORT),
        ("protocol", PROTOCOL),
        ("targetPort", NumberOrText),
    ],
    &["port"],
);

const SESSION_AFFINITY: Shape = Fields(&[("clientIP", Fields(&[("timeoutSeconds", Number(1, 86400))], &[]))], &[]);

const SERVICE_SPEC: Shape = Fields(
    &[
        ("allocateLoadBalancerNodePorts", Boolean),
        ("clusterIP", Text),
        ("clusterIPs", List(&Text)),
        ("externalIPs", List(&Address)),
        ("externalName", Text),
        ("externalTrafficPolicy", Word(&["Cluster", "Local"])),
        ("healthCheckNodePort", Number(0, 65535)),
        ("internalTrafficPolicy", Word(&["Cluster", "Local"])),
        ("ipFamilies", List(&Word(&["IPv4", "IPv6"]))),
        ("ipFamilyPolicy", Word(&["SingleStack", "PreferDualStack", "RequireDualStack"])),
        ("loadBalancerClass", Text),
        ("loadBalancerIP", Address),
        ("loadBalancerSourceRanges", List(&Text)),
        ("ports", List(&SERVICE_PORT)),
        ("publishNotReadyAddresses", Boolean),
        ("selector", Texts),
        ("sessionAffinity", Word(&["None", "ClientIP"])),
        ("sessionAffinityConfig", SESSION_AFFINITY),
        ("topologyKeys", List(&Text)),
        ("trafficDistribution", Word(&["PreferClose", "PreferSameZone", "PreferSameNode"])),
        ("type", Word(&["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"])),
    ],
    &[],
);

const INGRESS: Shape = Fields(&[("hostname", Text), ("ip", Address), ("ipMode", Text), ("ports", Any)], &[]);
const SERVICE_STATUS: Shape =
    Fields(&[("conditions", Any), ("loadBalancer", Fields(&[("ingress", List(&INGRESS))], &[]))], &[]);

/// `v1 Service`.
pub(super) static SERVICE: Shape = Fields(
    &[("apiVersion", Text), ("kind", Text), ("metadata", METADATA), ("spec", SERVICE_SPEC), ("status", SERVICE_STATUS)],
    &["metadata", "spec"],
);

const ENDPOINTS_ADDRESS: Shape =
    Fields(&[("hostname", Text), ("ip", Text), ("nodeName", Text), ("targetRef", OBJECT_REFERENCE)], &["ip"]);
const ENDPOINTS_PORT: Shape =
    Fields(&[("appProtocol", Text), ("name", Text), ("port", PORT), ("protocol", PROTOCOL)], &["port"]);
const SUBSET: Shape = Fields(
    &[
        ("addresses", List(&ENDPOINTS_ADDRESS)),
        ("notReadyAddresses", List(&ENDPOINTS_ADDRESS)),
        ("ports", List(&ENDPOINTS_PORT)),
    ],
    &[],
);

/// `v1 Endpoints`.
pub(super) static ENDPOINTS: Shape =
    Fields(&[("apiVersion", Text), ("kind", Text), ("metadata", METADATA), ("subsets", List(&SUBSET))], &["metadata"]);

const NAMED: Shape = Fields(&[("name", Text)], &["name"]);
const SLICE_ENDPOINT: Shape = Fields(
    &[
        ("addresses", List(&Text)),
        ("conditions", Fields(&[("ready", Boolean), ("serving", Boolean), ("terminating", Boolean)], &[])),
        ("deprecatedTopology", Texts),
        ("hints", Fields(&[("forNodes", List(&NAMED)), ("forZones", List(&NAMED))], &[])),
        ("hostname", Text),
        ("nodeName", Text),
        ("targetRef", OBJECT_REFERENCE),
        ("zone", Text),
    ],
    &["addresses"],
);
const SLICE_PORT: Shape = Fields(&[("appProtocol", Text), ("name", Text), ("port", PORT), ("protocol", PROTOCOL)], &[]);

/// `discovery.k8s.io/v1 EndpointSlice`.
pub(super) static ENDPOINT_SLICE: Shape = Fields(
    &[
        ("addressType", Word(&["IPv4", "IPv6", "FQDN"])),
        ("apiVersion", Text),
        ("endpoints", List(&SLICE_ENDPOINT)),
        ("kind", Text),
        ("metadata", METADATA),
        ("ports", List(&SLICE_PORT)),
    ],
    &["metadata", "addressType"],
);

/// `v1 Node`: its labels alone are read.
pub(super) static NODE: Shape = Fields(
    &[("apiVersion", Text), ("kind", Text), ("metadata", METADATA), ("spec", Any), ("status", Any)],
    &["metadata"],
);
