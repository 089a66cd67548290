//! The rules of a Service, each a table: manifests in, desired state, listings and findings out.

mod after;
mod allocate;
mod change;
mod claims;
mod endpoints;
mod frontends;
mod judging;
mod local;
mod node;
mod verdicts;

use lb::model::{EndpointState, ServicePort};
use millrace_translate::{
    Context, Finding, Given, Node, Pool, Serve, ServiceListing, Source, Translation, read, translate,
};

/// A gateway that serves every kind of frontend in both families.
fn gateway() -> Context {
    let pool = |name: &str, range: &str| Pool::new(name, vec![range.parse().unwrap()]);
    Context {
        serve: Serve { load_balancer: true, external_ips: true, cluster_ip: true, node_port: true },
        pools: vec![pool("v4", "203.0.113.0/29"), pool("v6", "2001:db8:1::/120")],
        service_ranges: vec!["10.96.0.0/16".parse().unwrap(), "fd00:96::/112".parse().unwrap()],
        node_addresses: vec!["192.0.2.1".parse().unwrap()],
        ..Context::default()
    }
}

fn at(hostname: &str, zone: &str, region: &str) -> Context {
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    Context { node: Node { hostname: text(hostname), zone: text(zone), region: text(region) }, ..gateway() }
}

/// A Service; `metadata` and `spec` in YAML's flow style.
fn noted(name: &str, annotations: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, annotations: {{{annotations}}}}}\nspec: {{{spec}}}\n"
    )
}

fn service(name: &str, spec: &str) -> String {
    noted(name, "", spec)
}

/// Endpoints with one subset.
fn endpoints(name: &str, subset: &str) -> String {
    format!("---\napiVersion: v1\nkind: Endpoints\nmetadata: {{name: {name}}}\nsubsets: [{{{subset}}}]\n")
}

fn slice(service: &str, family: &str, endpoints: &str, ports: &str) -> String {
    format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: {family}\n\
         metadata: {{name: {service}-{}, labels: {{kubernetes.io/service-name: {service}}}}}\n\
         endpoints: [{endpoints}]\nports: [{ports}]\n",
        family.to_lowercase()
    )
}

struct Outcome {
    result: Translation,
    findings: Vec<Finding>,
}

fn run_given(text: &str, context: &Context, given: &Given) -> Outcome {
    let (objects, mut findings) = read(&[Source { path: "a.yaml".into(), text: text.into() }], given);
    let result = translate(&objects, context, given);
    findings.extend(result.findings.iter().cloned());
    for finding in &findings {
        let message = &finding.message;
        assert!(message.contains("expected") || message.contains("did you mean"), "{finding}");
        assert!(finding.line > 0 && !finding.field.is_empty(), "{finding}");
    }
    Outcome { result, findings }
}

fn run(text: &str, context: &Context) -> Outcome {
    run_given(text, context, &Given::default())
}

impl Outcome {
    fn ports(&self, name: &str) -> Vec<&ServicePort> {
        self.result.desired.service_ports.iter().map(AsRef::as_ref).filter(|port| port.key.name == name).collect()
    }

    fn only(&self, name: &str) -> &ServicePort {
        let ports = self.ports(name);
        assert_eq!(ports.len(), 1, "{ports:#?} {:?}", self.findings);
        ports[0]
    }

    fn listed(&self, name: &str) -> &ServiceListing {
        self.result.services.iter().find(|service| service.name == name).expect(name)
    }

    /// `address:port` of the endpoints in this state, over all ports of the Service.
    fn in_state(&self, name: &str, state: EndpointState) -> String {
        let all =
            self.ports(name).into_iter().flat_map(|port: &ServicePort| &port.endpoints).filter(|e| e.state == state);
        let mut found: Vec<String> = all.map(|e| format!("{}:{}", e.address, e.port)).collect();
        found.dedup();
        found.join(" ")
    }

    fn usable(&self, name: &str) -> String {
        self.in_state(name, EndpointState::Usable)
    }

    fn frontends(&self, name: &str) -> String {
        let all = self.ports(name).into_iter().flat_map(|port| &port.frontends);
        all.map(|f| format!("{}:{}", f.address, f.port)).collect::<Vec<_>>().join(" ")
    }

    /// Every finding as shown.
    fn shown(&self) -> String {
        self.findings.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    }

    fn clean(self) -> Self {
        assert_eq!(self.findings, [], "{}", self.shown());
        self
    }
}
