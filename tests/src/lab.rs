//! Namespaces, wires and the processes in them.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// A set of namespaces that belong together.
pub struct Lab {
    prefix: String,
    dir: PathBuf,
    hosts: Vec<String>,
}

/// A host of a lab: one namespace. Cheap to clone; the [`Lab`] owns it.
#[derive(Clone, Debug)]
pub struct Host {
    /// The namespace's name below `/run/netns`.
    pub netns: String,
}

/// A process in a host; ended by id when dropped.
pub struct Process {
    child: Child,
    /// What it is, for messages.
    pub name: String,
    judged: Option<(PathBuf, Judge)>,
    /// Whether it was told to end without a word.
    killed: AtomicBool,
}

/// Panics if a process's log says what it must not; told whether the process ended well.
pub type Judge = fn(log: &str, well: bool);

impl Lab {
    /// An empty lab with a folder of its own.
    ///
    /// # Panics
    /// Without root, saying so: these tests never skip.
    #[must_use]
    pub fn new(name: &str) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "the namespace scenarios need root: run `sudo make test`");
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("mr{}-{number}", std::process::id());
        let dir = std::env::temp_dir().join(format!("millrace-lab-{prefix}-{name}"));
        std::fs::create_dir_all(&dir).expect("the lab's folder");
        Self { prefix, dir, hosts: Vec::new() }
    }

    /// The lab's own folder, removed at its end.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Adds a host.
    pub fn host(&mut self, name: &str) -> Host {
        let netns = format!("{}-{name}", self.prefix);
        run("ip", ["netns", "add", &netns]);
        self.hosts.push(netns.clone());
        let host = Host { netns };
        host.run("ip", ["link", "set", "lo", "up"]);
        // Addresses must not be tentative: a test would wait for duplicate address detection.
        host.sysctl("net.ipv6.conf.all.accept_dad", "0");
        host.sysctl("net.ipv6.conf.default.accept_dad", "0");
        host
    }

    /// A wire between two hosts: veth with `queues` queues on both ends, up, checksum offload as the kernel has it.
    pub fn wire(&self, a: (&Host, &str), b: (&Host, &str), queues: u32) {
        let q = queues.to_string();
        let end = |host: &Host, name: &str| {
            ["name", name, "netns", &host.netns, "numrxqueues", &q, "numtxqueues", &q].map(str::to_owned).to_vec()
        };
        let mut words: Vec<String> = vec!["link".into(), "add".into()];
        words.extend(end(a.0, a.1));
        words.extend(["type".into(), "veth".into(), "peer".into()]);
        words.extend(end(b.0, b.1));
        run("ip", words);
        for (host, name) in [a, b] {
            host.run("ip", ["link", "set", name, "up"]);
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // Instances mount their bpffs below the lab's folder.
        if let Ok(mounts) = std::fs::read_to_string("/proc/mounts") {
            let dir = self.dir.to_string_lossy().into_owned();
            // What was mounted last lies innermost.
            for target in mounts.lines().rev().filter_map(|l| l.split(' ').nth(1)).filter(|t| t.starts_with(&dir)) {
                let _ = nix::mount::umount(target);
            }
        }
        for netns in &self.hosts {
            let _ = Command::new("ip").args(["netns", "del", netns]).status();
        }
        if thread::panicking() {
            eprintln!("the lab's folder is kept: {}", self.dir.display());
        } else {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

impl Host {
    /// A command that runs in this host. The mount namespace stays the caller's, so that pins outlive the process.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.netns)).arg("--").arg(program);
        command
    }

    /// Runs a command to its end and returns its stdout.
    ///
    /// # Panics
    /// If it fails.
    pub fn run<S: AsRef<OsStr>>(&self, program: &str, args: impl IntoIterator<Item = S>) -> String {
        checked(self.command(program).args(args))
    }

    /// Runs a command to its end, whatever its exit code.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn output<S: AsRef<OsStr>>(&self, program: &str, args: impl IntoIterator<Item = S>) -> Output {
        self.command(program).args(args).output().unwrap_or_else(|e| panic!("{program}: {e}"))
    }

    /// Starts a process that stays; its output goes to `log`.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn spawn(&self, name: &str, mut command: Command, log: &Path) -> Process {
        let out = File::options().create(true).append(true).open(log).expect("a log file");
        let err = out.try_clone().expect("a log file");
        let child = command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .unwrap_or_else(|e| panic!("{name} on {}: {e}", self.netns));
        Process { child, name: name.to_owned(), judged: None, killed: AtomicBool::new(false) }
    }

    /// Sets a sysctl of this namespace.
    pub fn sysctl(&self, key: &str, value: &str) {
        self.run("sysctl", ["-q", "-w", &format!("{key}={value}")]);
    }

    /// Gives an interface an address (`192.0.2.1/24`).
    pub fn address(&self, interface: &str, prefix: &str) {
        let mut args = vec!["addr", "add", prefix, "dev", interface];
        if prefix.contains(':') {
            args.push("nodad");
        }
        self.run("ip", args);
    }

    /// Adds a route; words as `ip route add` takes them.
    pub fn route(&self, words: &str) {
        let family = if words.contains(':') { "-6" } else { "-4" };
        self.run("ip", [family, "route", "add"].into_iter().chain(words.split(' ')));
    }

    /// The link-layer address of an interface, as it is written. By netlink: the folder of interfaces is the test's own
    /// network namespace's.
    ///
    /// # Panics
    /// If there is no such interface.
    #[must_use]
    pub fn mac(&self, interface: &str) -> String {
        let links = self.run("ip", ["-j", "link", "show", "dev", interface]);
        let links: serde_json::Value = serde_json::from_str(&links).expect("JSON");
        links[0]["address"].as_str().expect("an address").to_owned()
    }

    /// Runs `work` on a thread that is in this host; threads that it starts are there too.
    ///
    /// # Panics
    /// If `work` does.
    pub fn within<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> thread::JoinHandle<T> {
        let netns = self.netns.clone();
        thread::spawn(move || {
            let file = File::open(format!("/run/netns/{netns}")).expect("the namespace");
            setns(file, CloneFlags::CLONE_NEWNET).expect("to enter the namespace");
            work()
        })
    }

    /// A counter of `nstat` (absolute), 0 if it never counted.
    ///
    /// # Panics
    /// If the kernel has no such counter.
    #[must_use]
    pub fn nstat(&self, counter: &str) -> u64 {
        let text = self.run("nstat", ["-asz", counter]);
        let value = |line: &str| {
            let mut words = line.split_whitespace();
            (words.next() == Some(counter)).then(|| words.next()?.parse().ok()).flatten()
        };
        text.lines().find_map(value).unwrap_or_else(|| panic!("nstat has no {counter}: {text}"))
    }
}

/// How long a process that is asked to end may take.
const FAREWELL: std::time::Duration = std::time::Duration::from_secs(30);

impl Process {
    /// Has its log judged once it ended, and has it asked to end, not killed, when it is dropped.
    #[must_use]
    pub fn judged(mut self, log: &Path, judge: Judge) -> Self {
        self.judged = Some((log.to_owned(), judge));
        self
    }

    fn judge(&mut self, well: bool) {
        if let Some((log, judge)) = self.judged.take() {
            let text = std::fs::read_to_string(&log).unwrap_or_else(|e| panic!("{}: {e}", log.display()));
            judge(&text, well);
        }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Octets of memory that it has: `VmRSS`, or had at most: `VmHWM` (proc_pid_status(5)).
    ///
    /// # Panics
    /// If it ended, or the kernel does not tell that.
    #[must_use]
    pub fn memory(&self, field: &str) -> u64 {
        let path = format!("/proc/{}/status", self.pid());
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        kib.unwrap_or_else(|| panic!("no {field} in {path}")) << 10
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        self.killed.fetch_or(signal == Signal::SIGKILL, Ordering::Relaxed);
        let _ = kill(Pid::from_raw(self.child.id() as i32), signal);
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for its end; `None` after `deadline`.
    ///
    /// # Panics
    /// If its log is judged and says what it must not.
    pub fn wait(&mut self, deadline: std::time::Duration) -> Option<std::process::ExitStatus> {
        let end = std::time::Instant::now() + deadline;
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                self.judge(status.success());
                return Some(status);
            }
            if std::time::Instant::now() >= end {
                return None;
            }
            thread::park_timeout(std::time::Duration::from_millis(5));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let may_answer = !self.killed.load(Ordering::Relaxed);
        let asked = self.judged.is_some() && may_answer && !thread::panicking() && self.is_running();
        if asked {
            self.signal(Signal::SIGTERM);
            let ended = self.wait(FAREWELL);
            if ended.is_some_and(|status| status.success()) {
                return;
            }
        }
        if self.is_running() {
            let _ = self.child.kill();
        }
        let ended = self.child.wait();
        assert!(!asked, "{} did not end well when asked to: {ended:?}", self.name);
        if !thread::panicking() {
            self.judge(ended.is_ok_and(|status| status.success()));
        }
    }
}

/// Runs a command to its end and returns its stdout.
///
/// # Panics
/// If it fails.
pub fn run<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> String {
    checked(Command::new(program).args(args))
}

fn checked(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}
