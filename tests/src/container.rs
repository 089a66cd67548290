//! A container as a kubelet and its runtime make it of a DaemonSet's template: runc, with the image's files, the
//! template's arguments, environment, volumes and capabilities, and what runtimes do by themselves (`/proc/sys` read-only,
//! a small `RLIMIT_MEMLOCK`). What a runtime's own seccomp profile takes away is not there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::helm::deploy;
use crate::lab::{Host, Process, run};
use crate::millrace;

/// What systems give a container that asks for nothing.
const MEMLOCK: u64 = 8 << 20;

/// A node's folders and what its kubelet knows.
pub struct Node {
    /// The network namespace.
    pub host: Host,
    /// The name.
    pub name: String,
    /// Where the host's root is, as far as hostPath volumes go.
    pub root: PathBuf,
    /// Files of the service account: their names and contents.
    pub account: Vec<(&'static str, String)>,
    /// The ConfigMap of each name, as JSON.
    pub config_maps: Vec<Value>,
    /// Secrets with one key: their names and what it says.
    pub secrets: Vec<(&'static str, String)>,
}

/// A container that runs, ended with its folders when it is dropped.
pub struct Container {
    process: Process,
    id: String,
    runc: PathBuf,
    log: PathBuf,
}

impl Node {
    /// A node whose host's bpffs is mounted.
    ///
    /// # Panics
    /// If the folders cannot be made.
    #[must_use]
    pub fn new(host: &Host, name: &str, dir: &Path) -> Self {
        let root = dir.join("node");
        let bpffs = root.join("sys/fs/bpf");
        fs::create_dir_all(&bpffs).expect("the node's folders");
        run("mount", ["-t".as_ref(), "bpf".as_ref(), "bpf".as_ref(), bpffs.as_os_str()]);
        let (host, name) = (host.clone(), name.to_owned());
        Self { host, name, root, account: Vec::new(), config_maps: Vec::new(), secrets: Vec::new() }
    }

    /// Starts the first container of a DaemonSet's template.
    ///
    /// # Panics
    /// If runc is not there or the template has something that this does not know.
    #[must_use]
    pub fn start(&self, id: &str, template: &Value) -> Container {
        let bundle = self.root.join("containers").join(id);
        image(&bundle.join("rootfs"));
        let spec = self.spec(&bundle, &template["spec"]);
        fs::write(bundle.join("config.json"), spec.to_string()).expect("the container's description");
        let (runc, log) = (self.root.join("runc"), bundle.join("log"));
        let id = format!("{}-{id}", self.host.netns);
        let mut command = Command::new("runc");
        command.arg("--root").arg(&runc).args(["run", "--bundle"]).arg(&bundle).arg(&id);
        let process = self.host.spawn("runc", command, &log);
        Container { process, id, runc, log }
    }

    fn spec(&self, bundle: &Path, pod: &Value) -> Value {
        assert_eq!(pod["hostNetwork"], true, "the container shares the node's network");
        let container = &pod["containers"][0];
        let context = &container["securityContext"];
        assert_eq!(context["capabilities"]["drop"], json!(["ALL"]));
        let added = context["capabilities"]["add"].as_array().expect("capabilities");
        let capabilities: Vec<String> =
            added.iter().map(|name| format!("CAP_{}", name.as_str().expect("a name"))).collect();
        let args = container["args"].as_array().into_iter().flatten().map(|arg| arg.as_str().expect("a word"));
        let args: Vec<&str> = std::iter::once("/usr/bin/millrace").chain(args).collect();
        let namespaces: Vec<Value> =
            ["pid", "ipc", "uts", "mount"].map(|kind| json!({"type": kind})).into_iter().collect();
        let network = json!({"type": "network", "path": format!("/run/netns/{}", self.host.netns)});
        json!({
            "ociVersion": "1.0.2",
            "hostname": self.name,
            "root": {"path": "rootfs", "readonly": context["readOnlyRootFilesystem"] == true},
            "process": {
                "user": {"uid": context["runAsUser"], "gid": 0},
                "cwd": "/",
                "args": args,
                "env": self.environment(container),
                "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
                "rlimits": [{"type": "RLIMIT_MEMLOCK", "soft": MEMLOCK, "hard": MEMLOCK}],
                "noNewPrivileges": context["allowPrivilegeEscalation"] == false,
            },
            "mounts": self.mounts(bundle, pod, container),
            "linux": {
                "namespaces": namespaces.into_iter().chain([network]).collect::<Vec<_>>(),
                "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
                "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            },
        })
    }

    fn environment(&self, container: &Value) -> Vec<String> {
        let mut all = vec!["PATH=/usr/bin".to_owned()];
        for variable in container["env"].as_array().into_iter().flatten() {
            let value = match &variable["value"] {
                Value::String(value) => value,
                _ => {
                    assert_eq!(variable["valueFrom"]["fieldRef"]["fieldPath"], "spec.nodeName", "{variable}");
                    &self.name
                }
            };
            all.push(format!("{}={value}", variable["name"].as_str().expect("a name")));
        }
        all
    }

    fn mounts(&self, bundle: &Path, pod: &Value, container: &Value) -> Vec<Value> {
        let bind = |to: &str, from: &Path, word: &str| json!({"destination": to, "type": "bind", "source": from, "options": ["rbind", "rprivate", word]});
        let system = |to: &str, kind: &str, more: &[&str]| {
            let options = [&["nosuid", "noexec"], more].concat();
            json!({"destination": to, "type": kind, "source": kind, "options": options})
        };
        let mut mounts = vec![
            system("/proc", "proc", &["nodev"]),
            system("/dev", "tmpfs", &["strictatime", "mode=755"]),
            system("/sys", "sysfs", &["nodev", "ro"]),
        ];
        // As runtimes do: what lies deeper comes later.
        let mut wanted: Vec<&Value> = container["volumeMounts"].as_array().into_iter().flatten().collect();
        wanted.sort_by_key(|mount| mount["mountPath"].as_str().map(|path| path.matches('/').count()));
        for mount in wanted {
            let volumes = pod["volumes"].as_array().into_iter().flatten();
            let volume = volumes.into_iter().find(|volume| volume["name"] == mount["name"]).expect("its volume");
            let word = if mount["readOnly"] == true { "ro" } else { "rw" };
            mounts.push(bind(mount["mountPath"].as_str().expect("a path"), &self.volume(bundle, volume), word));
        }
        let account = bundle.join("account");
        write(&account, self.account.iter().map(|(name, text)| (*name, text.as_str())));
        mounts.push(bind("/var/run/secrets/kubernetes.io/serviceaccount", &account, "ro"));
        mounts
    }

    /// Where a volume is.
    fn volume(&self, bundle: &Path, volume: &Value) -> PathBuf {
        let name = volume["name"].as_str().expect("a name");
        if let Some(path) = volume["hostPath"]["path"].as_str() {
            if volume["hostPath"]["type"] == "Directory" {
                assert!(Path::new(path).is_dir(), "{volume}");
                return path.into();
            }
            assert_eq!(volume["hostPath"]["type"], "DirectoryOrCreate", "{volume}");
            let folder = self.root.join(path.trim_start_matches('/'));
            fs::create_dir_all(&folder).expect("a folder of the host");
            return folder;
        }
        let folder = bundle.join(name);
        for source in volume["projected"]["sources"].as_array().expect("sources") {
            if source["configMap"].is_object() {
                let wanted = &source["configMap"]["name"];
                let found =
                    self.config_maps.iter().find(|map| map["metadata"]["name"] == *wanted).expect("its ConfigMap");
                let files = found["data"].as_object().expect("its files").iter();
                write(&folder, files.map(|(name, text)| (name.as_str(), text.as_str().expect("a text"))));
            } else {
                self.secret(&folder, &source["secret"]);
            }
        }
        folder
    }

    /// The files of a Secret, where this node has it.
    fn secret(&self, folder: &Path, wanted: &Value) {
        let Some((_, key)) = self.secrets.iter().find(|(name, _)| wanted["name"] == *name) else {
            assert_eq!(wanted["optional"], true, "{wanted}");
            return;
        };
        for item in wanted["items"].as_array().expect("items") {
            let path = folder.join(item["path"].as_str().expect("a path"));
            write(path.parent().expect("a folder"), [("key", key.as_str())].into_iter());
        }
    }
}

fn write<'f>(folder: &Path, files: impl Iterator<Item = (&'f str, &'f str)>) {
    fs::create_dir_all(folder).expect("a volume");
    for (name, text) in files {
        fs::write(folder.join(name), text).expect("a file of a volume");
    }
}

/// The shared libraries of a program, where the loader finds them.
///
/// # Panics
/// If one is missing.
#[must_use]
pub fn libraries(program: &Path) -> Vec<PathBuf> {
    let text = run("ldd", [program]);
    assert!(!text.contains("not found"), "{text}");
    text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect()
}

/// The files of the image, as its Dockerfile gathers them: the binary, nft and their libraries, nothing else.
fn image(root: &Path) {
    let binary = millrace::binary();
    run(deploy("image.sh").to_str().expect("a path"), [binary.as_os_str(), root.as_os_str()]);
}

impl Container {
    /// What it logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its main process, of runc: signals go through it.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Runs a command in it, as `kubectl exec` does.
    ///
    /// # Panics
    /// If runc cannot be started.
    #[must_use]
    pub fn exec(&self, words: &[&str]) -> Output {
        let mut command = Command::new("runc");
        command.arg("--root").arg(&self.runc).args(["exec", &self.id]).args(words);
        command.output().expect("runc")
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let mut command = Command::new("runc");
        let _ = command.arg("--root").arg(&self.runc).args(["delete", "--force", &self.id]).output();
    }
}
