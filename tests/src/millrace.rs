//! The real binary, run as a user would.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use crate::lab::{Host, Process};
use crate::wait::eventually;

/// A gateway's folders and how to run `millrace` on it.
pub struct Gateway {
    /// The host that it runs on.
    pub host: Host,
    /// Where configuration, manifests, runtime and state are.
    pub dir: PathBuf,
    instances: u32,
}

/// Where the binary is: `MILLRACE_BIN`, else beside the running test.
///
/// # Panics
/// If it is not built.
#[must_use]
pub fn binary() -> PathBuf {
    let path = std::env::var_os("MILLRACE_BIN").map_or_else(
        || {
            let mut path = std::env::current_exe().expect("the test's path");
            path.pop();
            if path.ends_with("deps") {
                path.pop();
            }
            path.join("millrace")
        },
        PathBuf::from,
    );
    assert!(path.exists(), "{} is not built: `cargo build --bins` first", path.display());
    path
}

impl Gateway {
    /// Makes the folders on a host of the lab and writes the configuration: `config` and the folders' lines.
    ///
    /// # Panics
    /// If the folders cannot be written.
    #[must_use]
    pub fn new(host: &Host, lab_dir: &Path, config: &str) -> Self {
        let dir = lab_dir.join("gw");
        fs::create_dir_all(dir.join("manifests")).expect("the gateway's folders");
        let gateway = Self { host: host.clone(), dir, instances: 0 };
        gateway.configure(config);
        gateway
    }

    /// Writes the configuration anew; `config` lacks the folders' lines, which are added.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn configure(&self, config: &str) {
        let dir = self.dir.display();
        let text = format!(
            "{config}\nmanifests: [{dir}/manifests]\nruntime: {dir}/run\nstate: {dir}/state\n\
             admin: {dir}/run/admin.sock\nmetrics: 127.0.0.1:9477\n"
        );
        fs::write(self.config(), text).expect("the configuration");
    }

    /// The configuration's path.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.dir.join("millrace.yaml")
    }

    /// Writes a manifest, whole and at once (by rename), as an editor or a configuration tool does.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn manifest(&self, name: &str, text: &str) {
        let part = self.dir.join(format!(".{name}.part"));
        fs::write(&part, text).expect("a manifest");
        fs::rename(part, self.dir.join("manifests").join(name)).expect("a manifest");
    }

    /// Starts `millrace run` and waits until it is ready.
    ///
    /// # Panics
    /// With its log, if it ends or is not ready within 20 s.
    pub fn start(&mut self) -> Process {
        let mut process = self.launch();
        self.await_ready(&mut process);
        process
    }

    /// Starts `millrace run` and does not wait.
    pub fn launch(&mut self) -> Process {
        self.instances += 1;
        let mut command = self.host.command(binary());
        command.arg("run").arg("--config").arg(self.config());
        self.host.spawn("millrace", command, &self.log())
    }

    /// Waits until this very process answers as ready.
    ///
    /// # Panics
    /// With its log, if it ends or is not ready within 20 s.
    pub fn await_ready(&self, process: &mut Process) {
        let pid = u64::from(process.pid());
        eventually("millrace is ready", Duration::from_secs(20), || {
            assert!(process.is_running(), "millrace ended:\n{}", self.log_text());
            let output = self.admin(&["status", "-o", "json"]);
            if !output.status.success() {
                return Err(format!("{}\n{}", String::from_utf8_lossy(&output.stderr), self.log_text()));
            }
            let status: serde_json::Value = serde_json::from_slice(&output.stdout).map_err(|e| e.to_string())?;
            if status["ready"] == true && status["pid"] == pid { Ok(()) } else { Err(status.to_string()) }
        });
    }

    /// Runs a command that asks the running instance.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn admin(&self, words: &[&str]) -> Output {
        let mut command = self.host.command(binary());
        command.args(words).arg("--admin").arg(self.dir.join("run/admin.sock"));
        command.output().expect("millrace")
    }

    /// The same, as JSON.
    ///
    /// # Panics
    /// If it fails or prints no JSON.
    #[must_use]
    pub fn json(&self, words: &[&str]) -> serde_json::Value {
        let mut all = words.to_vec();
        all.extend(["-o", "json"]);
        let output = self.admin(&all);
        assert!(output.status.success(), "millrace {words:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    /// Sum of a metric's samples whose labels contain `labels`.
    #[must_use]
    pub fn metric(&self, name: &str, labels: &str) -> f64 {
        let text = self.host.run("curl", ["-s", "--max-time", "5", "http://127.0.0.1:9477/metrics"]);
        text.lines()
            .filter(|line| {
                line.starts_with(name) && line[name.len()..].starts_with(['{', ' ']) && line.contains(labels)
            })
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    fn log(&self) -> PathBuf {
        self.dir.join("millrace.log")
    }

    /// What all instances logged so far.
    #[must_use]
    pub fn log_text(&self) -> String {
        fs::read_to_string(self.log()).unwrap_or_default()
    }
}
