//! A real Kubernetes control plane in a host of the lab: etcd, kube-apiserver and kube-controller-manager, out of the one
//! binary that `tests/kubelab/build.sh` makes and caches.
//!
//! There is no kubelet: Nodes and Pods are applied, and their status is patched; the controllers make EndpointSlices of
//! that as they do in a cluster. It ends with what it started: everything is in the lab's folder and namespace.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::lab::{Host, Lab, Process, run};
use crate::wait::eventually;

/// Where the API server is reached, from hosts that have a wire to it: no loopback address, which it would not publish.
pub const ADDRESS: &str = "10.77.0.1";
const PORT: u16 = 6443;
/// A Service of both families for the Pods with `app: web`.
pub const WEB: &str = "\
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: LoadBalancer
  ipFamilyPolicy: RequireDualStack
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
";
/// How long a component may take on a busy machine; seconds are usual.
const START: Duration = Duration::from_secs(90);
/// The controllers that make of Services and Pods what is watched, and those that they need.
const CONTROLLERS: &str = "endpoints-controller,endpointslice-controller,endpointslice-mirroring-controller,\
                           serviceaccount-controller,serviceaccount-token-controller,namespace-controller,\
                           root-ca-certificate-publisher-controller,garbage-collector-controller";

/// A control plane that runs.
pub struct Kubelab {
    // Dropped in this order: who asks goes before who answers.
    controllers: Option<Process>,
    api_server: Option<Process>,
    etcd: Option<Process>,
    /// Its host; `eth0` is free for a wire.
    pub host: Host,
    dir: PathBuf,
    binary: PathBuf,
    more: Vec<String>,
}

/// A Pod to be made.
pub struct Pod<'p> {
    /// Its name.
    pub name: &'p str,
    /// The value of its label `app`.
    pub app: &'p str,
    /// Its Node.
    pub node: &'p str,
    /// Its addresses.
    pub addresses: &'p [&'p str],
}

/// The binary, built where it is not cached.
///
/// # Panics
/// If it cannot be built, with what to do.
#[must_use]
pub fn binary() -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("kubelab/build.sh");
    run(script.to_str().expect("a path"), [""; 0]).trim().into()
}

impl Kubelab {
    /// Starts it, with `more` arguments for the API server, and waits until Pods can be made.
    ///
    /// # Panics
    /// With what a component logged, if it ends or takes too long.
    #[must_use]
    pub fn start(lab: &mut Lab, more: &[&str]) -> Self {
        let binary = binary();
        let host = lab.host("kube");
        let dir = lab.dir().join("kube");
        fs::create_dir_all(&dir).expect("the control plane's folder");
        // It publishes this address, and has it before there is a wire.
        host.run("ip", ["link", "add", "own", "type", "bridge"]);
        host.run("ip", ["link", "set", "own", "up"]);
        host.address("own", &format!("{ADDRESS}/32"));
        certificates(&dir);
        let etcd = etcd(&host, &binary, &dir);
        let more = more.iter().map(|&word| word.to_owned()).collect();
        let mut kubelab = Self { controllers: None, api_server: None, etcd: Some(etcd), host, dir, binary, more };
        kubelab.start_api_server();
        kubelab.start_controllers();
        kubelab
    }

    /// Starts the API server and waits until it is ready.
    ///
    /// # Panics
    /// With its log, if it ends or is not ready in time.
    pub fn start_api_server(&mut self) {
        let dir = self.dir.display();
        let words = [
            "--etcd-servers=http://127.0.0.1:2379".to_owned(),
            format!("--bind-address=0.0.0.0 --secure-port={PORT} --advertise-address={ADDRESS}"),
            format!("--tls-cert-file={dir}/server.crt --tls-private-key-file={dir}/server.key"),
            format!("--client-ca-file={dir}/ca.crt --token-auth-file={dir}/tokens.csv --authorization-mode=Node,RBAC"),
            "--service-cluster-ip-range=10.96.0.0/16,fd00:10:96::/112 --allow-privileged --profiling=false".to_owned(),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!(
                "--service-account-key-file={dir}/accounts.key --service-account-signing-key-file={dir}/accounts.key"
            ),
        ];
        let words = words.iter().flat_map(|line| line.split(' ')).map(str::to_owned).chain(self.more.iter().cloned());
        self.api_server = Some(self.spawn("kube-apiserver", words));
        eventually("the API server is ready", START, || {
            let running = self.api_server.as_mut().is_some_and(Process::is_running);
            assert!(running, "kube-apiserver ended:\n{}", self.log("kube-apiserver"));
            self.asked(&["get", "--raw=/readyz"])
        });
    }

    /// Kills the API server, as a crash does: asked to end, it would take its time.
    pub fn kill_api_server(&mut self) {
        if let Some(mut server) = self.api_server.take() {
            server.signal(Signal::SIGKILL);
            let _ = server.wait(Duration::from_secs(10));
        }
    }

    /// Kills all of it and starts it again, on what [`Kubelab::restart_from`]'s backup has, or on what is there. A backup
    /// is older than what those who watch have seen: versions go back.
    ///
    /// # Panics
    /// As [`Kubelab::start_api_server`].
    pub fn restart_from(&mut self, backup: Option<&Path>) {
        self.controllers = None;
        self.kill_api_server();
        self.etcd = None;
        if let Some(backup) = backup {
            fs::remove_dir_all(self.data()).expect("to remove what etcd has");
            copy(backup, &self.data());
        }
        self.etcd = Some(etcd(&self.host, &self.binary, &self.dir));
        self.start_api_server();
        self.start_controllers();
    }

    /// A copy of all objects, for [`Kubelab::restart_from`]. The API server is gone afterwards.
    ///
    /// # Panics
    /// If the copy cannot be made.
    #[must_use]
    pub fn back_up(&mut self) -> PathBuf {
        self.controllers = None;
        self.kill_api_server();
        self.etcd = None;
        let backup = self.dir.join("backup");
        copy(&self.data(), &backup);
        backup
    }

    fn data(&self) -> PathBuf {
        self.dir.join("etcd")
    }

    fn start_controllers(&mut self) {
        let dir = self.dir.display();
        let words = [
            format!("--kubeconfig={dir}/controllers.kubeconfig --authentication-skip-lookup=true"),
            format!("--bind-address=127.0.0.1 --cert-dir={dir}/controllers-certs --leader-elect=false"),
            // Else its controllers lack the rights that are bound to their accounts.
            "--use-service-account-credentials=true --allocate-node-cidrs=false --profiling=false".to_owned(),
            format!("--service-account-private-key-file={dir}/accounts.key --root-ca-file={dir}/ca.crt"),
            // A Pod's readiness is in its slice at once, not after a batch of others.
            format!("--controllers={CONTROLLERS} --endpointslice-updates-batch-period=0s"),
        ];
        let words = words.iter().flat_map(|line| line.split(' ')).map(str::to_owned);
        self.controllers = Some(self.spawn("kube-controller-manager", words));
        eventually("Pods can be made", START, || {
            let running = self.controllers.as_mut().is_some_and(Process::is_running);
            assert!(running, "kube-controller-manager ended:\n{}", self.log("kube-controller-manager"));
            self.asked(&["get", "serviceaccount", "default"])
        });
    }

    fn spawn(&self, program: &str, words: impl IntoIterator<Item = String>) -> Process {
        let mut command = self.host.command(&self.binary);
        command.arg(program).args(words).current_dir(&self.dir).env("HOME", &self.dir);
        self.host.spawn(program, command, &self.dir.join(format!("{program}.log")))
    }

    /// What a component logged.
    #[must_use]
    pub fn log(&self, program: &str) -> String {
        fs::read_to_string(self.dir.join(format!("{program}.log"))).unwrap_or_default()
    }

    /// A kubeconfig of an administrator, for any host that reaches [`ADDRESS`].
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("admin.kubeconfig")
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = self.host.command(&self.binary);
        command.arg("kubectl").args(words).env("KUBECONFIG", self.kubeconfig()).env("HOME", &self.dir);
        command
    }

    fn asked(&self, words: &[&str]) -> Result<String, String> {
        let Output { status, stdout, stderr } = self.command(words).output().expect("kubectl runs");
        if status.success() { Ok(text(&stdout)) } else { Err(text(&stderr)) }
    }

    /// What `kubectl` prints.
    ///
    /// # Panics
    /// If it fails.
    pub fn kubectl(&self, words: &[&str]) -> String {
        self.asked(words).unwrap_or_else(|error| panic!("kubectl {words:?}: {error}"))
    }

    /// What `kubectl` prints.
    ///
    /// # Errors
    /// What it says, if it fails.
    pub fn try_kubectl(&self, words: &[&str]) -> Result<String, String> {
        self.asked(words)
    }

    /// `kubectl apply` of a manifest.
    ///
    /// # Panics
    /// If the API server refuses it.
    pub fn apply(&self, manifest: &str) {
        self.pipe(&["apply", "-f", "-"], manifest);
    }

    /// `kubectl create` of a manifest: for many objects, of which none is there.
    ///
    /// # Panics
    /// If the API server refuses it.
    pub fn create(&self, manifest: &str) {
        self.pipe(&["create", "-f", "-"], manifest);
    }

    /// Writes the status of many objects at once, as those that run them do; of each the manifest has name and status.
    ///
    /// # Panics
    /// If the API server refuses it.
    pub fn apply_status(&self, manifest: &str) {
        let words = ["apply", "--server-side", "--force-conflicts", "--subresource=status", "-f", "-"];
        self.pipe(&words, manifest);
    }

    /// Starts kube-proxy on a host that is wired to it, in mode nftables, as that of a Node. What is in `pods` are
    /// addresses of Pods.
    #[must_use]
    pub fn kube_proxy(&self, host: &Host, node: &str, pods: &[&str]) -> Process {
        let mut command = host.command(&self.binary);
        command.args(["kube-proxy", "--proxy-mode=nftables", "--nodeport-addresses=primary"]);
        command.arg(format!("--kubeconfig={}", self.kubeconfig().display())).arg(format!("--hostname-override={node}"));
        command.args(["--detect-local-mode=ClusterCIDR", &format!("--cluster-cidr={}", pods.join(","))]);
        // Of the machine, not of the namespace: to be left as they are.
        command.args(["--conntrack-max-per-core=0", "--conntrack-min=0", "--conntrack-tcp-timeout-established=0"]);
        command.args(["--conntrack-tcp-timeout-close-wait=0", "--v=2"]);
        command.current_dir(&self.dir).env("HOME", &self.dir);
        host.spawn("kube-proxy", command, &self.dir.join("kube-proxy.log"))
    }

    fn pipe(&self, words: &[&str], manifest: &str) {
        self.piped(words, manifest).unwrap_or_else(|error| panic!("kubectl {words:?}: {error}\n{manifest}"));
    }

    fn piped(&self, words: &[&str], manifest: &str) -> Result<String, String> {
        let mut command = self.command(words);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("kubectl runs");
        let mut stdin = child.stdin.take().expect("its standard input");
        stdin.write_all(manifest.as_bytes()).expect("to write the manifest");
        drop(stdin);
        let Output { status, stdout, stderr } = child.wait_with_output().expect("kubectl ends");
        if status.success() { Ok(text(&stdout)) } else { Err(text(&stderr)) }
    }

    /// Whether the API server takes a manifest; nothing is stored.
    ///
    /// # Errors
    /// What it has against it, be it an unknown field.
    pub fn verdict(&self, manifest: &str) -> Result<(), String> {
        self.piped(&["apply", "--dry-run=server", "--validate=strict", "-f", "-"], manifest).map(drop)
    }

    /// What the API server would store of each object of a manifest, defaults filled in; nothing is stored.
    ///
    /// # Errors
    /// What it has against one of them, be it a warning or an unknown field.
    pub fn judge(&self, manifest: &str) -> Result<Vec<serde_json::Value>, String> {
        let file = self.dir.join("judged.yaml");
        fs::write(&file, manifest).expect("a manifest");
        let words = ["apply", "--dry-run=server", "--validate=strict", "--warnings-as-errors", "-o", "json", "-f"];
        let text = self.asked(&[&words[..], &[file.to_str().expect("a path")]].concat())?;
        let all: serde_json::Value = serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))?;
        Ok(all["items"].as_array().cloned().unwrap_or_else(|| vec![all]))
    }

    /// Patches the status of an object (`service/web`).
    ///
    /// # Panics
    /// If the API server refuses it.
    pub fn patch_status(&self, object: &str, status: &str) {
        let patch = format!("{{\"status\": {status}}}");
        self.kubectl(&["patch", object, "--subresource=status", "--type=merge", "-p", &patch]);
    }

    /// Gives a Service of type LoadBalancer its addresses, as a provider does.
    ///
    /// # Panics
    /// If the API server refuses it.
    pub fn assign(&self, service: &str, addresses: &[&str]) {
        let entries: Vec<String> = addresses.iter().map(|ip| format!("{{\"ip\": \"{ip}\"}}")).collect();
        let status = format!("{{\"loadBalancer\": {{\"ingress\": [{}]}}}}", entries.join(", "));
        self.patch_status(&format!("service/{service}"), &status);
    }

    /// Makes a Node in a zone.
    pub fn node(&self, name: &str, zone: &str) {
        self.apply(&format!(
            "apiVersion: v1\nkind: Node\nmetadata:\n  name: {name}\n  labels: {{topology.kubernetes.io/zone: {zone}}}\n"
        ));
    }

    /// Makes a Pod that runs and is ready.
    pub fn pod(&self, pod: &Pod<'_>) {
        self.apply(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  labels: {{app: {app}}}\nspec:\n  nodeName: {node}\n  \
             containers: [{{name: web, image: none, ports: [{{name: http, containerPort: 8080}}]}}]\n",
            name = pod.name,
            app = pod.app,
            node = pod.node,
        ));
        let ips: Vec<String> = pod.addresses.iter().map(|ip| format!("{{\"ip\": \"{ip}\"}}")).collect();
        let status = format!(
            "{{\"phase\": \"Running\", \"podIP\": \"{}\", \"podIPs\": [{}], \
             \"conditions\": [{{\"type\": \"Ready\", \"status\": \"True\"}}]}}",
            pod.addresses[0],
            ips.join(", ")
        );
        self.patch_status(&format!("pod/{}", pod.name), &status);
    }

    /// Says whether a Pod is ready, as its kubelet would.
    pub fn ready(&self, pod: &str, ready: bool) {
        let word = if ready { "True" } else { "False" };
        self.patch_status(
            &format!("pod/{pod}"),
            &format!("{{\"conditions\": [{{\"type\": \"Ready\", \"status\": \"{word}\"}}]}}"),
        );
    }

    /// Wires it to a host: `interface` there has `address` (of 10.77.0.0/24).
    pub fn wire(&self, lab: &Lab, host: &Host, interface: &str, address: &str) {
        let port = format!("to-{interface}");
        lab.wire((host, interface), (&self.host, &port), 1);
        host.address(interface, &format!("{address}/24"));
        self.host.route(&format!("{address}/32 dev {port} src {ADDRESS}"));
    }
}

fn text(octets: &[u8]) -> String {
    String::from_utf8_lossy(octets).into_owned()
}

fn copy(from: &Path, to: &Path) {
    run("cp", [Path::new("-a"), from, to]);
}

fn etcd(host: &Host, binary: &Path, dir: &Path) -> Process {
    let mut command = host.command(binary);
    let (client, peer) = ("http://127.0.0.1:2379", "http://127.0.0.1:2380");
    command.arg("etcd").arg("--data-dir").arg(dir.join("etcd"));
    command.args(["--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", peer]);
    command.args(["--initial-advertise-peer-urls", peer, "--initial-cluster", &format!("default={peer}")]);
    // A crash of the machine ends the test anyway.
    command.args(["--unsafe-no-fsync", "--log-level", "warn"]).env("HOME", dir);
    host.spawn("etcd", command, &dir.join("etcd.log"))
}

/// A certificate authority, the API server's certificate, the key of service accounts, tokens and kubeconfigs.
fn certificates(dir: &Path) {
    let openssl = |words: &str| {
        let output = Command::new("openssl").args(words.split(' ')).current_dir(dir).output().expect("openssl runs");
        assert!(output.status.success(), "openssl {words}: {}", text(&output.stderr));
    };
    let write = |name: &str, content: &str| fs::write(dir.join(name), content).expect("a file of the control plane");
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl("ecparam -genkey -noout -name prime256v1 -out accounts.key");
    openssl(&format!(
        "req -x509 {key} -days 2 -subj /CN=lab -keyout ca.key -out ca.crt \
         -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign"
    ));
    openssl(&format!("req {key} -subj /CN=kube-apiserver -keyout server.key -out server.csr"));
    write(
        "server.ext",
        &format!(
            "basicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth\n\
             subjectAltName=IP:127.0.0.1,IP:{ADDRESS},IP:10.96.0.1,DNS:kubernetes.default.svc\n"
        ),
    );
    openssl(
        "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile server.ext -out server.crt",
    );
    // Nothing outside the lab's namespaces reaches who takes these.
    write(
        "tokens.csv",
        "lab-admin,admin,admin,\"system:masters\"\nlab-controllers,system:kube-controller-manager,kcm\n",
    );
    for (name, token) in [("admin", "lab-admin"), ("controllers", "lab-controllers")] {
        let (server, authority) = (format!("https://{ADDRESS}:{PORT}"), dir.join("ca.crt"));
        write(
            &format!("{name}.kubeconfig"),
            &format!(
                "apiVersion: v1\nkind: Config\ncurrent-context: lab\n\
                 clusters: [{{name: lab, cluster: {{server: \"{server}\", certificate-authority: {}}}}}]\n\
                 users: [{{name: lab, user: {{token: {token}}}}}]\n\
                 contexts: [{{name: lab, context: {{cluster: lab, user: lab}}}}]\n",
                authority.display()
            ),
        );
    }
}
