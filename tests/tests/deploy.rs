//! `deploy/kubernetes`: what kustomize and Helm make of it, judged by a real API server; and the DaemonSet's container, run
//! as it is written.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use millrace_tests::container::{Container, Node};
use millrace_tests::helm::{self, NAMESPACE, deploy, kustomize, template};
use millrace_tests::kubelab::{ADDRESS, Kubelab, Pod};
use millrace_tests::lab::{Lab, run};
use millrace_tests::load;
use millrace_tests::millrace;
use millrace_tests::servers;
use millrace_tests::topology::{Network, VIP};
use millrace_tests::wait::eventually;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// How long a change may take on a busy machine.
const SOON: Duration = Duration::from_secs(60);

/// Overlays that people copy from.
const EXAMPLES: &[&str] = &["examples/routed", "examples/l2", "examples/without-kube-proxy", "examples/remove"];

/// Values that set everything that the chart knows another way than by default.
const OTHER_VALUES: &[&str] = &[
    "--set=image.repository=registry.example.com:5000/millrace,image.tag=1.2.3,image.pullPolicy=Always",
    "--set=imagePullSecrets[0].name=registry,nodeSelector.edge=here,podLabels.team=net,podAnnotations.note=x",
    "--set=config.interfaces={eth0,eth1},config.nodes.node-1.limits.flows=2048",
    "--set=config.pools[0].name=one,config.pools[0].addresses={10.0.0.0/24}",
    "--set=env[0].name=MILLRACE_LOG,env[0].value=debug,apiServer.host=10.0.0.1,serviceAccount.annotations.a=b",
    "--set=priorityClassName=system-cluster-critical,resources.limits.memory=1Gi,minReadySeconds=5",
    "--set=affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[0].key=a",
    "--set=affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[0].operator=Exists",
    "--set=seLinuxOptions.type=spc_t,hostPaths.runtime=/var/run/millrace,metrics.address=0.0.0.0,metrics.port=9500",
];

/// What judges objects: names of theirs, and what the API server took them for.
fn judged(kubelab: &Kubelab, manifest: &str) -> Vec<Value> {
    kubelab.judge(manifest).unwrap_or_else(|error| panic!("{error}\n{manifest}"))
}

fn of_kind<'o>(objects: &'o [Value], kind: &str) -> &'o Value {
    objects.iter().find(|object| object["kind"] == kind).unwrap_or_else(|| panic!("there is no {kind}"))
}

/// An object as far as it is what somebody wrote: labels are the tool's, and so is how a change of the configuration comes
/// to be rolled out, by the ConfigMap's name or an annotation.
fn essence(kubelab: &Kubelab, object: &Value) -> (String, Value) {
    let mut object = object.clone();
    let metadata = object["metadata"].as_object_mut().expect("metadata");
    let name = metadata["name"].as_str().expect("a name").to_owned();
    metadata.retain(|key, _| matches!(key.as_str(), "name" | "namespace"));
    let kind = object["kind"].as_str().expect("a kind").to_owned();
    if kind == "ConfigMap" {
        object["metadata"]["name"] = json!("millrace");
        let text = object["data"]["millrace.yaml"].as_str().expect("a configuration");
        object["data"]["millrace.yaml"] = as_json(kubelab, text);
    }
    if kind == "DaemonSet" {
        object.as_object_mut().expect("fields").remove("status");
        let annotations = object["spec"]["template"]["metadata"]["annotations"].as_object_mut().expect("annotations");
        annotations.remove("millrace.dev/configuration");
        for volume in object["spec"]["template"]["spec"]["volumes"].as_array_mut().expect("volumes") {
            for source in volume["projected"]["sources"].as_array_mut().into_iter().flatten() {
                if source["configMap"].is_object() {
                    source["configMap"]["name"] = json!("millrace");
                }
            }
        }
    }
    let name = if name.starts_with("millrace-") && kind == "ConfigMap" { "millrace".to_owned() } else { name };
    (format!("{kind} {name}"), object)
}

/// Any YAML as JSON: the API server reads it, as the data of an object that may have any.
fn as_json(kubelab: &Kubelab, yaml: &str) -> Value {
    let indented: String = yaml.lines().map(|line| format!("  {line}\n")).collect();
    let manifest = format!(
        "apiVersion: apps/v1\nkind: ControllerRevision\nmetadata: {{name: any}}\nrevision: 1\ndata:\n{indented}"
    );
    judged(kubelab, &manifest)[0]["data"].clone()
}

fn template_of(objects: &[Value]) -> &Value {
    &of_kind(objects, "DaemonSet")["spec"]["template"]
}

fn configuration(objects: &[Value]) -> &str {
    of_kind(objects, "ConfigMap")["data"]["millrace.yaml"].as_str().expect("a configuration")
}

/// `millrace check` on a machine that is none of the nodes. What it says, empty if nothing is wrong.
fn check(lab: &Lab, node: &str, configuration: &str) -> String {
    let file = lab.dir().join("checked.yaml");
    fs::write(&file, configuration).expect("a configuration");
    let mut command = Command::new(millrace::binary());
    let output = command.args(["check", "--offline", "--config"]).arg(file).env("NODE_NAME", node).output();
    let output = output.expect("millrace");
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.success(), said.is_empty(), "{said}");
    said
}

/// No rule with a wildcard, none about Secrets, none that makes or changes what rights are.
fn rights_are_few(objects: &[Value]) {
    for role in objects.iter().filter(|object| object["kind"].as_str().is_some_and(|kind| kind.ends_with("Role"))) {
        for rule in role["rules"].as_array().expect("rules") {
            let words = |key: &str| rule[key].as_array().cloned().unwrap_or_default();
            let all = [words("apiGroups"), words("resources"), words("verbs")].concat();
            assert!(all.iter().all(|word| !word.as_str().expect("a word").contains('*')), "a wildcard: {rule}");
            let resources = words("resources");
            assert!(!resources.is_empty() && !resources.contains(&json!("secrets")), "{rule}");
            let few = ["get", "list", "watch", "create", "update", "patch", "delete"];
            assert!(words("verbs").iter().all(|verb| few.contains(&verb.as_str().expect("a verb"))), "{rule}");
            assert!(!words("apiGroups").contains(&json!("rbac.authorization.k8s.io")), "{rule}");
        }
    }
}

/// A Pod of the template, judged by all that stands between a DaemonSet and its Pods.
fn pod_is_let_in(kubelab: &Kubelab, daemon_set: &Value) {
    let mut pod = daemon_set["spec"]["template"].clone();
    pod["apiVersion"] = json!("v1");
    pod["kind"] = json!("Pod");
    pod["metadata"]["name"] = json!("one");
    pod["metadata"]["namespace"] = json!(NAMESPACE);
    pod["metadata"].as_object_mut().expect("metadata").remove("creationTimestamp");
    judged(kubelab, &pod.to_string());
}

#[test]
fn chart_and_base_are_the_same_and_an_api_server_takes_them_and_their_examples() {
    let mut lab = Lab::new("deploy");
    let kubelab = Kubelab::start(&mut lab, &[]);
    kubelab.apply(&fs::read_to_string(deploy("base/namespace.yaml")).expect("the namespace"));
    let base = judged(&kubelab, &kustomize("base"));
    let chart = judged(&kubelab, &template(&[]).expect("the chart"));
    let mut theirs: Vec<(String, Value)> = base.iter().map(|object| essence(&kubelab, object)).collect();
    let mut ours: Vec<(String, Value)> = chart.iter().map(|object| essence(&kubelab, object)).collect();
    // `helm install --create-namespace` makes it.
    theirs.retain(|(name, _)| name != "Namespace millrace-system");
    theirs.sort_by(|a, b| a.0.cmp(&b.0));
    ours.sort_by(|a, b| a.0.cmp(&b.0));
    let names = |all: &[(String, Value)]| all.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&ours), names(&theirs));
    for ((name, ours), (_, theirs)) in ours.iter().zip(&theirs) {
        assert_eq!(ours, theirs, "{name}");
    }
    let removing = judged(
        &kubelab,
        &template(&["--set=remove=true,image.repository=registry.example.com/millrace"]).expect("remove"),
    );
    let example = judged(&kubelab, &kustomize("examples/remove"));
    assert_eq!(template_of(&removing)["spec"]["containers"], template_of(&example)["spec"]["containers"]);
    assert_eq!(
        of_kind(&removing, "DaemonSet")["spec"]["updateStrategy"],
        of_kind(&example, "DaemonSet")["spec"]["updateStrategy"]
    );
    let mut all = vec![base, chart, judged(&kubelab, &template(OTHER_VALUES).expect("other values"))];
    all.extend(EXAMPLES.iter().map(|example| judged(&kubelab, &kustomize(example))));
    // What its Pods need.
    kubelab.apply(&template(&[]).expect("the chart"));
    for objects in &all {
        rights_are_few(objects);
        assert!(!template_of(objects).to_string().contains("hostPort"), "a port would keep a successor from its node");
        for node in ["node-1", "node-2"] {
            assert_eq!(check(&lab, node, configuration(objects)), "", "{}", configuration(objects));
        }
        pod_is_let_in(&kubelab, of_kind(objects, "DaemonSet"));
    }
    let missing = check(&lab, "node-9", configuration(&all[0]));
    assert!(missing.contains("snat.addresses: missing"), "a node of which nothing is written: {missing}");
    the_other_values_are_where_they_belong(of_kind(&all[2], "DaemonSet"), configuration(&all[2]));
    kubelab.kubectl(&["delete", "--wait=false", "namespace", NAMESPACE]);
    kubelab.kubectl(&["delete", "clusterrole,clusterrolebinding", "millrace"]);
    eventually("the namespace is gone", SOON, || {
        let left = kubelab.kubectl(&["get", "namespaces", "-o", "name"]);
        if left.contains(NAMESPACE) { Err(left) } else { Ok(()) }
    });
    helm_installs_upgrades_and_removes(&kubelab);
}

fn the_other_values_are_where_they_belong(daemon_set: &Value, configuration: &str) {
    let template = &daemon_set["spec"]["template"];
    let container = &template["spec"]["containers"][0];
    assert_eq!(container["image"], "registry.example.com:5000/millrace:1.2.3");
    assert_eq!(container["readinessProbe"]["httpGet"]["host"], "127.0.0.1");
    assert_eq!(container["readinessProbe"]["httpGet"]["port"], 9500);
    assert_eq!(container["env"][1], json!({"name": "KUBERNETES_SERVICE_HOST", "value": "10.0.0.1"}));
    assert_eq!(container["env"][3], json!({"name": "MILLRACE_LOG", "value": "debug"}));
    assert_eq!(template["metadata"]["labels"]["team"], "net");
    assert_eq!(template["spec"]["nodeSelector"], json!({"edge": "here", "kubernetes.io/os": "linux"}));
    assert!(configuration.contains("metrics: 0.0.0.0:9500"), "{configuration}");
}

/// The real thing: what is installed is what is removed.
fn helm_installs_upgrades_and_removes(kubelab: &Kubelab) {
    let chart = deploy("chart");
    let chart = chart.to_str().expect("a path");
    let said = helm::run_on(kubelab, &["install", "millrace", chart, "--create-namespace"]).expect("to install");
    assert!(said.contains("WARNING: the configuration has addresses of the documentation's examples"), "{said}");
    let get = |what: &str, path: &str| kubelab.kubectl(&["-n", NAMESPACE, "get", what, &format!("-o=jsonpath={path}")]);
    let annotation = "{.spec.template.metadata.annotations.millrace\\.dev/configuration}";
    let before = get("daemonset/millrace", annotation);
    let words = ["upgrade", "millrace", chart, "--reuse-values", "--set=config.seed=one"];
    helm::run_on(kubelab, &words).expect("to upgrade");
    assert_ne!(before, get("daemonset/millrace", annotation), "a changed configuration is rolled out");
    assert_eq!(get("daemonset/millrace", "{.spec.updateStrategy.rollingUpdate.maxSurge}"), "1");
    helm::run_on(kubelab, &["uninstall", "millrace"]).expect("to uninstall");
    let left = kubelab.kubectl(&["get", "daemonsets,clusterroles,clusterrolebindings", "-A", "-o", "name"]);
    assert!(!left.contains("millrace"), "{left}");
}

#[test]
fn wrong_values_are_refused_with_their_names() {
    for (words, says) in [
        (&["--set=image.tagg=1"][..], "at '/image': additional properties 'tagg' not allowed"),
        (&["--set=config.interface=eth0"], "at '/config': additional properties 'interface' not allowed"),
        (&["--set=config.interfaces=eth0"], "at '/config/interfaces': got string, want array"),
        (&["--set=config.manifests={/m}"], "at '/config': additional properties 'manifests' not allowed"),
        (&["--set=config.runtime=/r"], "additional properties 'runtime' not allowed"),
        (&["--set=config.announce[0].mode=l3"], "at '/config/announce/0/mode': value must be one of 'l2', 'none'"),
        (&["--set=config.pools[0].name=a"], "at '/config/pools/0': missing property 'addresses'"),
        (&["--set=config.nodes.n1.snat.addresses={n1}"], "at '/config/nodes/n1/snat/addresses/0': 'n1' does not match"),
        (&["--set=config.nodes.n1.pools={}"], "at '/config/nodes/n1': additional properties 'pools' not allowed"),
        (&["--set=metrics.port=70000"], "at '/metrics/port': maximum: got 70,000, want 65,535"),
        (&["--set=updateStrategy.type=Recreate"], "at '/updateStrategy/type': value must be one of"),
        (&["--set=capabilities={sys_admin}"], "at '/capabilities/0': 'sys_admin' does not match"),
        (&["--set=serviceMonitor.enabled=true"], "set metrics.address, for example to 0.0.0.0"),
        (&["--set=image.digest=sha256:1"], "at '/image/digest'"),
    ] {
        let error = template(words).expect_err(&format!("{words:?}"));
        assert!(error.contains(says), "{words:?}: {error}");
    }
    let monitored = template(&["--set=serviceMonitor.enabled=true,metrics.address=0.0.0.0,serviceMonitor.labels.a=b"]);
    let monitored = monitored.expect("a ServiceMonitor");
    assert!(monitored.contains("kind: ServiceMonitor") && monitored.contains("metrics: 0.0.0.0:9477"), "{monitored}");
}

/// The schema knows every key of the configuration but those that are the pod's or the chart's own: asked of `check`,
/// which names them all to who writes another.
#[test]
fn the_schema_has_every_key_of_the_configuration() {
    let lab = Lab::new("deploy-keys");
    let schema = fs::read_to_string(deploy("chart/values.schema.json")).expect("the schema");
    let schema: Value = serde_json::from_str(&schema).expect("JSON");
    let of = |schema: &Value| -> BTreeSet<String> {
        schema["properties"].as_object().expect("properties").keys().cloned().collect()
    };
    let known = |text: &str| -> BTreeSet<String> {
        let said = check(&lab, "node-1", text);
        let line = said.lines().find_map(|line| line.split_once("unknown key, expected one of "));
        let (_, keys) = line.unwrap_or_else(|| panic!("{said}"));
        keys.split(", ").map(str::to_owned).collect()
    };
    let config = &schema["properties"]["config"];
    let mut keys = known("0000: 1\n");
    for pods in ["manifests", "serviceRange", "admin", "metrics", "runtime", "state"] {
        assert!(keys.remove(pods), "{pods}");
    }
    assert_eq!(of(config), keys);
    let keys = known("nodes: {n: {0000: 1}}\n");
    assert_eq!(of(&config["properties"]["nodes"]["additionalProperties"]), keys);
}

/// What the Dockerfile installs for building is what `make setup` installs, and what it puts into the image is all that the
/// binary loads.
#[test]
fn the_images_files_are_those_that_the_binary_needs() {
    let read = |path: &str| fs::read_to_string(deploy(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    let (dockerfile, makefile) = (read("Dockerfile"), read("../../Makefile"));
    let list = |text: &str, from: &str, to: &str| -> Vec<String> {
        let (_, rest) = text.split_once(from).unwrap_or_else(|| panic!("no {from}"));
        let words = rest.split(to).next().unwrap_or_default().split_whitespace();
        words.filter(|word| *word != "\\").map(str::to_owned).collect()
    };
    let installed = list(&dockerfile, "--no-install-recommends ", "&&");
    let ours = list(&makefile, "PACKAGES :=", "BENCH_PACKAGES");
    assert!(installed.len() > 3 && installed.iter().all(|package| ours.contains(package)), "{installed:?} of {ours:?}");
    let manifest = read("../../Cargo.toml");
    let of = |key: &str| list(&manifest, &format!("\n{key} = \""), "\"")[0].clone();
    assert!(dockerfile.contains(&format!("FROM rust:{}-", of("rust-version"))), "{dockerfile}");
    assert!(dockerfile.contains(&format!("image.version=\"{}\"", of("version"))), "{dockerfile}");
    assert!(read("chart/Chart.yaml").contains(&format!("appVersion: {}\n", of("version"))));
    let lab = Lab::new("deploy-image");
    let root = lab.dir().join("image");
    let binary = millrace::binary();
    run(deploy("image.sh").to_str().expect("a path"), [binary.as_os_str(), root.as_os_str()]);
    let said = run("chroot", [root.as_os_str(), "/usr/bin/millrace".as_ref(), "--version".as_ref()]);
    assert_eq!(said.trim(), format!("millrace {}", of("version")));
}

const WEB: &str = "\
apiVersion: v1
kind: Service
metadata: {name: web, annotations: {millrace.dev/addresses: 10.81.1.100}}
spec:
  type: LoadBalancer
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
";

/// At a server of the node itself, which only the kernel reaches.
const OWN: &str = "\
apiVersion: v1
kind: Service
metadata: {name: own, annotations: {millrace.dev/addresses: 10.81.1.101}}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  selector: {app: own}
  ports: [{port: 80, targetPort: 8080}]
";

/// A node of a cluster in which the chart is installed, and what its kubelet makes of that.
struct Installed {
    // Dropped in this order: the network's lab has the control plane's host.
    kubelab: Kubelab,
    node: Node,
    network: Network,
}

impl Installed {
    fn new() -> Self {
        let mut network = Network::two_nics("deploy-container", 3, 1);
        let kubelab = Kubelab::start(&mut network.lab, &[]);
        kubelab.wire(&network.lab, &network.gateway, "api0", "10.77.0.2");
        network.client.route(&format!("{VIP}/32 via 10.81.1.1"));
        network.client.route("10.81.1.101/32 via 10.81.1.1");
        kubelab.node("n1", "a");
        kubelab.apply(WEB);
        kubelab.apply(OWN);
        kubelab.pod(&Pod { name: "own", app: "own", node: "n1", addresses: &["10.82.1.1"] });
        network.servers.push(servers::nginx(&network.gateway, network.lab.dir(), "own", &["10.82.1.1:8080"]));
        for number in 1..=3 {
            let address = network.backend_address(number, false).to_string();
            kubelab.pod(&Pod { name: &format!("p{number}"), app: "web", node: "n1", addresses: &[&address] });
        }
        let values = network.lab.dir().join("values.yaml");
        // The API server by its own address: there is no kube-proxy.
        let text = format!(
            "apiServer: {{host: {ADDRESS}}}\nconfig:\n  interfaces: [eth0, eth1]\n  \
             kubernetes: {{heartbeat: {{key: /etc/millrace/heartbeat/key}}}}\n  announce: [{{mode: l2}}]\n  \
             pools: [{{name: public, addresses: [10.81.1.96/28]}}]\n  \
             nodes: {{n1: {{snat: {{addresses: [10.82.1.1], ports: 20000-20999}}, kernelPort: {{snat: [10.244.1.250]}}}}, node-1: null, node-2: null}}\n"
        );
        fs::write(&values, text).expect("values");
        let chart = deploy("chart");
        let words = ["install", "millrace", chart.to_str().expect("a path"), "--create-namespace", "--values"];
        let words = [&words[..], &[values.to_str().expect("a path")]].concat();
        helm::run_on(&kubelab, &words).expect("to install");
        let mut node = Node::new(&network.gateway, "n1", network.lab.dir());
        let object = |what: &str| -> Value {
            serde_json::from_str(&kubelab.kubectl(&["-n", NAMESPACE, "get", what, "-o", "json"])).expect("JSON")
        };
        node.secrets = vec![("millrace-heartbeat", "5".repeat(64))];
        node.config_maps = vec![object("configmap/millrace")];
        // A controller makes it of the namespace.
        let authority = eventually("the authority's certificate is published", SOON, || {
            let words = ["-n", NAMESPACE, "get", "configmap/kube-root-ca.crt", "-o=jsonpath={.data.ca\\.crt}"];
            let text = kubelab.try_kubectl(&words)?;
            if text.contains("CERTIFICATE") { Ok(text) } else { Err(text) }
        });
        node.account = vec![
            ("token", kubelab.kubectl(&["-n", NAMESPACE, "create", "token", "millrace"]).trim().to_owned()),
            ("ca.crt", authority),
            ("namespace", NAMESPACE.to_owned()),
        ];
        Self { kubelab, node, network }
    }

    /// The template of the DaemonSet.
    fn template(&self) -> Value {
        let text = self.kubelab.kubectl(&["-n", NAMESPACE, "get", "daemonset/millrace", "-o", "json"]);
        let object: Value = serde_json::from_str(&text).expect("JSON");
        object["spec"]["template"].clone()
    }

    /// What a probe of the template gets from the node.
    fn probe(&self, template: &Value, kind: &str) -> Result<(), String> {
        let get = &template["spec"]["containers"][0][kind]["httpGet"];
        let url = format!("http://{}:{}{}", get["host"].as_str().unwrap(), get["port"], get["path"].as_str().unwrap());
        let output = self.network.gateway.output("curl", ["-sS", "--fail", "--max-time", "5", &url]);
        if output.status.success() { Ok(()) } else { Err(format!("{output:?}")) }
    }

    /// Waits until this container says that it serves.
    fn await_running(&self, container: &mut Container, template: &Value) {
        eventually("the container serves", SOON, || {
            assert!(container.process().is_running(), "it ended:\n{}", container.log());
            if container.log().contains("running pid=") { Ok(()) } else { Err(container.log()) }
        });
        eventually("it is ready", SOON, || self.probe(template, "readinessProbe"));
        eventually("it lives", SOON, || self.probe(template, "livenessProbe"));
    }
}

#[test]
fn the_daemon_sets_container_needs_what_it_is_given_and_its_upgrade_fails_no_request() {
    let installed = Installed::new();
    let template = installed.template();
    each_capability_is_needed(&installed, &template);

    let mut first = installed.node.start("first", &template);
    installed.await_running(&mut first, &template);
    eventually("it has its address and serves it", SOON, || {
        let said = first.exec(&["/usr/bin/millrace", "services"]);
        if String::from_utf8_lossy(&said.stdout).contains(VIP) {
            Ok(())
        } else {
            Err(format!("{said:?}\n{}", first.log()))
        }
    });
    eventually("its account may write addresses", SOON, || {
        let words = ["get", "service/web", "-o=jsonpath={.status.loadBalancer.ingress[*].ip}"];
        let given = installed.kubelab.kubectl(&words);
        if given == VIP { Ok(()) } else { Err(format!("{given}\n{}", first.log())) }
    });
    eventually("all Pods are served", SOON, || {
        let outcome = load::requests(&installed.network.client, installed.network.vip(false), 30, 6);
        if outcome.failures.is_empty() && outcome.by_server.len() == 3 { Ok(()) } else { Err(format!("{outcome:?}")) }
    });
    let outcome = load::requests(&installed.network.client, installed.network.vip(false), 60, 6);
    assert!(outcome.failures.is_empty(), "{outcome:?}");
    let reserved = installed.network.gateway.run("sysctl", ["-n", "net.ipv4.ip_local_reserved_ports"]);
    assert_eq!(reserved.trim(), "20000-20999", "it sets the kernel's settings of its network namespace");
    installed.network.gateway.run("ip", ["link", "show", "millrace-k1"]);
    eventually("who is behind the kernel port sees clients with policy Local", SOON, || {
        let seen = servers::who(&installed.network.client, "http://10.81.1.101/", 5);
        let right = seen.as_ref().is_ok_and(|(name, address)| name == "own" && address == "10.81.1.2");
        if right { Ok(()) } else { Err(format!("{seen:?}\n{}", first.log())) }
    });
    dashboards_name_what_there_is(&installed);
    let account = format!("--as=system:serviceaccount:{NAMESPACE}:millrace");
    for denied in [["get", "secrets"], ["create", "pods"], ["delete", "services"], ["get", "configmaps"]] {
        let words = [&["auth", "can-i"][..], &denied, &["-A", &account, "-v=0"]].concat();
        let mut command = installed.kubelab.host.command(millrace_tests::kubelab::binary());
        let output = command.arg("kubectl").args(&words).env("KUBECONFIG", installed.kubelab.kubeconfig()).output();
        let output = output.expect("kubectl");
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "no", "{denied:?}: {output:?}");
    }
    // As the DaemonSet's controller does: a successor beside it, which is let in as soon as it is ready.
    let requests = load::steady(&installed.network.client, installed.network.vip(false), 4);
    let held = load::hold(&installed.network.client, installed.network.vip(false), 12, Duration::from_millis(20));
    held.await_each(SOON);
    let mut second = installed.node.start("second", &template);
    installed.await_running(&mut second, &template);
    eventually("the first one waits to be ended", SOON, || {
        if first.log().contains("the successor runs; waiting to be ended") { Ok(()) } else { Err(first.log()) }
    });
    requests.await_answers(200, SOON);
    assert!(first.process().is_running(), "its kubelet would start it again:\n{}", first.log());
    first.process().signal(Signal::SIGTERM);
    let ended = first.process().wait(SOON);
    assert!(ended.is_some_and(|status| status.success()), "{ended:?}:\n{}", first.log());
    held.await_answers(200, SOON);
    let (requests, held) = (requests.finish(), held.finish());
    assert!(requests.failures.is_empty(), "requests failed: {:?}", requests.failures);
    assert!(held.failures.is_empty(), "connections broke: {:?}", held.failures);

    second.process().signal(Signal::SIGTERM);
    assert!(second.process().wait(SOON).is_some_and(|status| status.success()), "{}", second.log());
    for log in [first.log(), second.log()] {
        assert!(!log.to_lowercase().contains("forbidden"), "its account lacks a right:\n{log}");
    }
    nothing_is_left_where_it_is_removed(&installed);
}

/// What `remove` makes of the DaemonSet, twice: a node that nothing is left on is as good.
fn nothing_is_left_where_it_is_removed(installed: &Installed) {
    let chart = deploy("chart");
    let words = ["upgrade", "millrace", chart.to_str().expect("a path"), "--reuse-values", "--set=remove=true"];
    helm::run_on(&installed.kubelab, &words).expect("to upgrade");
    for id in ["removes", "removes-again"] {
        let mut last = installed.node.start(id, &installed.template());
        eventually("nothing is left", SOON, || {
            assert!(last.process().is_running(), "its kubelet would start it again:\n{}", last.log());
            if last.log().contains("nothing is left; waiting to be ended") { Ok(()) } else { Err(last.log()) }
        });
        last.process().signal(Signal::SIGTERM);
        assert!(last.process().wait(SOON).is_some_and(|status| status.success()), "{}", last.log());
    }
    for interface in ["eth0", "eth1"] {
        let link = installed.network.gateway.run("ip", ["-d", "link", "show", interface]);
        assert!(!link.contains("xdp"), "{link}");
    }
    assert_eq!(installed.network.gateway.run("nft", ["list", "tables"]), "");
    let pins = installed.node.root.join("sys/fs/bpf/millrace");
    assert!(is_empty(&pins), "steering is left in {}", pins.display());
    let reserved = installed.network.gateway.run("sysctl", ["-n", "net.ipv4.ip_local_reserved_ports"]);
    assert_eq!(reserved.trim(), "");
}

/// Every metric that an alert or a panel asks for is there, and so is every label's value that it is asked for with.
fn dashboards_name_what_there_is(installed: &Installed) {
    // Some are there from when something happened for the first time.
    let count = eventually("every metric is there", SOON, || {
        let words = ["-sSf", "--max-time", "5", "http://127.0.0.1:9477/metrics"];
        named_by_dashboards(&installed.network.gateway.run("curl", words))
    });
    assert!(count > 30, "{count}");
}

/// How often dashboards name one of these metrics, which must have all that they name.
fn named_by_dashboards(metrics: &str) -> Result<usize, String> {
    let mut count = 0;
    for file in ["alerts.yaml", "grafana.json"] {
        let text = fs::read_to_string(deploy("../dashboards").join(file)).expect("a dashboard").replace("\\\"", "\"");
        for (at, _) in text.match_indices("millrace_") {
            let end = |text: &str| text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len());
            let (name, rest) = text[at..].split_at(end(&text[at..]));
            let selector = rest.strip_prefix('{').and_then(|rest| rest.split('}').next()).unwrap_or("");
            let labels: Vec<&str> = selector.split(',').filter(|label| label.contains("=\"")).collect();
            let is_one = |line: &&str| {
                line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
                    && labels.iter().all(|l| line.contains(l))
            };
            if !metrics.lines().any(|line| is_one(&line)) {
                return Err(format!("{file}: no metric {name} with {labels:?}\n{metrics}"));
            }
            count += 1;
        }
    }
    Ok(count)
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).expect("a folder").next().is_none()
}

/// Without any one of its capabilities it does not start, so none is there in vain.
fn each_capability_is_needed(installed: &Installed, template: &Value) {
    let all = template["spec"]["containers"][0]["securityContext"]["capabilities"]["add"].as_array();
    let all = all.expect("capabilities");
    for one in all {
        let mut template = template.clone();
        let rest: Vec<&Value> = all.iter().filter(|other| *other != one).collect();
        template["spec"]["containers"][0]["securityContext"]["capabilities"]["add"] = json!(rest);
        let name = format!("without-{}", one.as_str().expect("a name").to_lowercase());
        let mut container = installed.node.start(&name, &template);
        let status = container.process().wait(SOON);
        assert!(status.is_some_and(|status| !status.success()), "it runs without {one}:\n{}", container.log());
    }
}
