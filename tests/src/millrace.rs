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

    /// Writes the configuration anew; `config` lacks the folders' lines, which are added: that of manifests where it says
    /// nothing of `kubernetes`.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn configure(&self, config: &str) {
        let dir = self.dir.display();
        let manifests = format!("manifests: [{dir}/manifests]\n");
        let source = if config.contains("kubernetes:") { "" } else { &manifests };
        let text = format!(
            "{config}\n{source}runtime: {dir}/run\nstate: {dir}/state\n\
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
    /// With its log, if it ends or is not ready within a minute.
    pub fn start(&mut self) -> Process {
        let mut process = self.launch();
        self.await_ready(&mut process);
        process
    }

    /// Starts `millrace run` and does not wait. When it ends, its frames must all be where they should be.
    pub fn launch(&mut self) -> Process {
        self.instances += 1;
        let mut command = self.host.command(binary());
        command.arg("run").arg("--config").arg(self.config());
        self.host.spawn("millrace", command, &self.log()).judged(&self.log(), frames_are_whole)
    }

    /// Waits until this very process answers as ready.
    ///
    /// # Panics
    /// With its log, if it ends or is not ready within a minute.
    pub fn await_ready(&self, process: &mut Process) {
        let pid = u64::from(process.pid());
        eventually("millrace is ready", Duration::from_secs(60), || {
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
    ///
    /// # Panics
    /// If there is no such sample, so that a misspelt name is not taken for 0.
    #[must_use]
    pub fn metric(&self, name: &str, labels: &str) -> f64 {
        self.metrics().sum(name, labels)
    }

    /// Waits until that sum is at least `least`: workers tell of what they did a moment after it.
    ///
    /// # Panics
    /// If it is not in time, or as [`Self::metric`].
    pub fn await_metric(&self, name: &str, labels: &str, least: f64) {
        eventually(&format!("{name} of {labels} is at least {least}"), Duration::from_secs(30), || {
            let now = self.metric(name, labels);
            if now >= least { Ok(()) } else { Err(now.to_string()) }
        });
    }

    /// All metrics as they are at one moment.
    ///
    /// # Panics
    /// If they cannot be read: for a while a successor's address may be its predecessor's still.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        Metrics(eventually("metrics are served", Duration::from_secs(20), || {
            let words = ["-sSf", "--max-time", "10", "http://127.0.0.1:9477/metrics"];
            let output = self.host.output("curl", words);
            let text = |octets: &[u8]| String::from_utf8_lossy(octets).into_owned();
            if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
        }))
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

/// Metrics of an instance, of one moment.
pub struct Metrics(String);

impl Metrics {
    /// Sum of a metric's samples whose labels contain `labels`.
    ///
    /// # Panics
    /// If there is no such sample.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &str) -> f64 {
        let of_name = |line: &&str| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']) && rest.contains(labels))
        };
        let value = |line: &str| line.rsplit(' ').next()?.parse::<f64>().ok();
        let samples: Vec<f64> = self.0.lines().filter(of_name).filter_map(value).collect();
        assert!(!samples.is_empty(), "no metric {name} with {labels}:\n{}", self.0);
        samples.iter().sum()
    }
}

/// No instance that wrote this log lost a frame or had one in two places, and one that ended well said so.
fn frames_are_whole(log: &str, well: bool) {
    assert!(!log.contains("frames are not where they should be"), "frames are lost or duplicated:\n{log}");
    let stopped: Vec<&str> = log.lines().filter(|line| line.contains("workers stopped")).collect();
    assert!(stopped.iter().all(|line| line.ends_with(" lost=0")), "frames are lost: {stopped:?}");
    assert!(!well || !stopped.is_empty(), "it ended without a word about its frames:\n{log}");
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use super::frames_are_whole;

    #[test]
    fn a_log_that_tells_of_lost_or_duplicated_frames_or_of_none_at_all_is_refused() {
        let stopped = |lost: u32| format!("INFO workers stopped frames=8192 lost={lost}\n");
        frames_are_whole(&stopped(0), true);
        frames_are_whole("", false);
        let duplicated = "ERROR frames are not where they should be frames=Frames { duplicates: 1 }\n".to_owned();
        for (log, well) in
            [(stopped(1), true), (stopped(10), false), (duplicated + &stopped(0), true), (String::new(), true)]
        {
            assert!(catch_unwind(|| frames_are_whole(&log, well)).is_err(), "{log}");
        }
    }
}
