//! Millrace on a node of a cluster: a real API server, the real controllers, Pods as network namespaces.

use millrace_tests::kubelab::Kubelab;
use millrace_tests::lab::Lab;

const WEB: &str = "\
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: LoadBalancer
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
";

#[test]
fn the_control_plane_takes_a_service_and_gives_it_an_address() {
    let mut lab = Lab::new("kubelab");
    let kubelab = Kubelab::start(&mut lab, &[]);
    kubelab.apply(WEB);
    let address = kubelab.kubectl(&["get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"]);
    assert!(address.starts_with("10.96."), "{address}");
}
