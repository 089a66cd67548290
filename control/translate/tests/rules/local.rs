//! "Verdicts": the policies Local of outside and inside, judged apart.

use lb::model::{Mode, NoEndpoint, Scope};
use millrace_translate::{Context, Place};

use super::{Outcome, at, run, service, slice};

const LIST: &str =
    "{addresses: [10.0.0.1], nodeName: n1}, {addresses: [10.0.0.2], nodeName: n2}, {addresses: [10.0.0.3]}";

fn local(policy: &str, context: &Context) -> Outcome {
    let spec = format!("type: LoadBalancer, clusterIP: 10.96.0.10, {policy}, ports: [{{port: 80, nodePort: 30080}}]");
    run(&(service("web", &spec) + &slice("web", "IPv4", LIST, "{port: 80}")), context).clean()
}

fn part(found: &Outcome, scope: Scope) -> (Vec<String>, Mode, NoEndpoint) {
    let part = found.ports("web").into_iter().find(|port| port.key.scope == scope).expect("this scope");
    let usable = part.endpoints.iter().filter(|e| e.state == lb::model::EndpointState::Usable);
    (usable.map(|e| e.address.to_string()).collect(), part.mode, part.no_endpoint)
}

#[test]
fn policy_local_takes_this_nodes_endpoints_all_on_a_gateway_without_any_and_drops_on_a_node() {
    let all: &[&str] = &["10.0.0.1", "10.0.0.2", "10.0.0.3"];
    let cases: [(Place, &str, &[&str], NoEndpoint); 5] = [
        (Place::Gateway, "n1", &["10.0.0.1"], NoEndpoint::Drop),
        (Place::Gateway, "gw", all, NoEndpoint::Reject),
        (Place::Gateway, "", all, NoEndpoint::Reject),
        (Place::Node, "n2", &["10.0.0.2"], NoEndpoint::Drop),
        (Place::Node, "n9", &[], NoEndpoint::Drop),
    ];
    for (place, hostname, usable, none) in cases {
        let context = Context { place, ..at(hostname, "", "") };
        let found = local("externalTrafficPolicy: Local", &context);
        let own: Vec<String> = usable.iter().map(ToString::to_string).collect();
        assert_eq!(part(&found, Scope::External), (own.clone(), Mode::Preserve, none), "{place:?} {hostname}");
        let (inside, mode, verdict) = part(&found, Scope::Internal);
        assert_eq!((inside.len(), mode, verdict), (3, Mode::Nat, NoEndpoint::Reject), "judged apart");
        assert_eq!(found.listed("web").mode, "preserve");
        let found = local("internalTrafficPolicy: Local", &context);
        if own.len() == 3 {
            assert_eq!(found.only("web").mode, Mode::Nat);
        } else {
            assert_eq!(part(&found, Scope::Internal), (own, Mode::Nat, none), "{place:?} {hostname}");
            assert_eq!(part(&found, Scope::External).0.len(), 3);
        }
    }
}

#[test]
fn policy_local_rejects_where_no_node_has_an_endpoint() {
    let unready = LIST.replace("}", ", conditions: {ready: false}}");
    for (list, none) in [("", NoEndpoint::Reject), (&*unready, NoEndpoint::Reject), (LIST, NoEndpoint::Drop)] {
        for (policy, scope) in [("externalTrafficPolicy", Scope::External), ("internalTrafficPolicy", Scope::Internal)]
        {
            let spec = format!(
                "type: LoadBalancer, clusterIP: 10.96.0.10, {policy}: Local, ports: [{{port: 80, nodePort: 30080}}]"
            );
            let slices = slice("web", "IPv4", list, "{port: 80}");
            let context = Context { place: Place::Node, ..at("n9", "", "") };
            let found = run(&(service("web", &spec) + &slices), &context).clean();
            // Where outside and inside are the same, they are one.
            let of = |port: &&lb::model::ServicePort| [scope, Scope::All].contains(&port.key.scope);
            let ports = found.ports("web");
            let port = ports.iter().copied().find(|port| of(port)).expect("this scope");
            assert_eq!(port.no_endpoint, none, "{policy} {list}");
        }
    }
}
