//! The command line. Data goes to stdout, errors to stderr in one line that says what to do.
//!
//! Exit codes: 0 done, 1 failed, 2 bad input or configuration, 3 no running instance.

use std::io::{IsTerminal, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand};
use lb::flow::FlowFile;
use nix::sys::signal::{SigSet, Signal};
use serde::de::DeserializeOwned;
use translate::Finding;

use crate::admin::{self, AskError, Draining, Hello, Request};
use crate::config::{Config, DEFAULT_ADMIN, DEFAULT_PATH, Span};
use crate::explain::Question;
use crate::run::{self, RunError};
use crate::show::{self, Format, Shown};
use crate::view::{BackendFilter, Filters};
use crate::{check, claim, stop};

/// How long a running instance may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long one that is being killed, or is just starting, may keep what `stop` cleans up.
const ENDING: Duration = Duration::from_secs(3);

/// A layer-4 load balancer over AF_XDP that reads Kubernetes Services.
#[derive(Debug, Parser)]
#[command(name = "millrace", version, after_help = "Example: millrace run --config /etc/millrace/millrace.yaml")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct AdminArgs {
    /// Admin socket of the running instance
    #[arg(long, value_name = "SOCKET", default_value = DEFAULT_ADMIN)]
    admin: PathBuf,
}

#[derive(Debug, Args)]
struct ListArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// How to print
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Format,
    /// Only of this Service; its name alone will do where one namespace has it
    #[arg(long, value_name = "NAMESPACE/NAME")]
    service: Option<String>,
    /// Only of this backend
    #[arg(long, value_name = "IP[:PORT]")]
    backend: Option<BackendFilter>,
    /// Only what has flows of this client
    #[arg(long, value_name = "IP")]
    source: Option<std::net::IpAddr>,
    /// Most rows [default: all; of flows 10000]
    #[arg(long, value_name = "NUMBER")]
    limit: Option<NonZeroUsize>,
}

#[derive(Debug, Args)]
struct StatusArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// How to print
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Format,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run in the foreground; SIGTERM leaves steering and flows to a successor, SIGHUP reloads
    #[command(after_help = "Example: millrace run --config /etc/millrace/millrace.yaml")]
    Run {
        /// The configuration
        #[arg(long, value_name = "FILE", default_value = DEFAULT_PATH)]
        config: PathBuf,
        /// After handing over to a successor, wait for SIGTERM instead of ending: a kubelet would start it again
        #[arg(long)]
        stay: bool,
    },
    /// Drain, withdraw, detach and remove everything, after a dead instance too
    #[command(after_help = "Example: millrace stop --drain 30s")]
    Stop {
        #[command(flatten)]
        admin: AdminArgs,
        /// How long flows may end by themselves
        #[arg(long, value_name = "DURATION", default_value = "0s")]
        drain: Span,
        /// Runtime folder of a dead instance; default: where the admin socket is
        #[arg(long, value_name = "FOLDER")]
        runtime: Option<PathBuf>,
        /// Wait for SIGTERM when nothing is left, instead of ending: a kubelet would start it again
        #[arg(long)]
        stay: bool,
    },
    /// Check the configuration, its manifests and what it asks of this host; exit 2 with errors
    #[command(after_help = "Example: millrace check --config millrace.yaml --manifests services/\n\
                            On another machine than the gateway: millrace check --config millrace.yaml --offline")]
    Check {
        /// The configuration
        #[arg(long, value_name = "FILE", default_value = DEFAULT_PATH)]
        config: PathBuf,
        /// Manifests in place of the configuration's
        #[arg(long, value_name = "PATH", num_args = 1..)]
        manifests: Vec<PathBuf>,
        /// Leave out what is about this host: its interfaces, addresses, ports and folders
        #[arg(long)]
        offline: bool,
    },
    /// Version, uptime, interfaces, workers, drops
    #[command(after_help = "Example: millrace status -o json")]
    Status(StatusArgs),
    /// Services with their addresses
    #[command(after_help = "Example: millrace services --service default/web")]
    Services(ListArgs),
    /// Endpoints with their state and connections
    #[command(after_help = "Example: millrace backends --service default/web -o wide")]
    Backends(ListArgs),
    /// Flows
    #[command(after_help = "Example: millrace flows --source 198.51.100.7")]
    Flows(ListArgs),
    /// What would happen to a packet, rule by rule
    #[command(after_help = "Example: millrace explain 198.51.100.7:4000 203.0.113.1:80/tcp")]
    Explain {
        /// From where, ADDRESS:PORT
        source: String,
        /// To where, ADDRESS:PORT/tcp, /udp or /sctp
        destination: String,
        #[command(flatten)]
        admin: AdminArgs,
        /// How to print
        #[arg(short, long, value_name = "FORMAT", default_value = "table")]
        output: Format,
    },
    /// Give a backend no new flows
    #[command(after_help = "Example: millrace drain 10.0.0.7:8080")]
    Drain(DrainArgs),
    /// Give it new flows again
    #[command(after_help = "Example: millrace undrain 10.0.0.7:8080")]
    Undrain(DrainArgs),
}

#[derive(Debug, Args)]
struct DrainArgs {
    /// IP or IP:PORT
    backend: BackendFilter,
    #[command(flatten)]
    admin: AdminArgs,
}

/// How a command failed.
#[derive(Debug)]
enum Failure {
    Failed(String),
    BadInput(String),
    Nobody(String),
    /// Findings were printed.
    Findings,
}

impl From<AskError> for Failure {
    fn from(error: AskError) -> Self {
        match error {
            AskError::Nobody(_) => Self::Nobody(error.to_string()),
            other => Self::Failed(other.to_string()),
        }
    }
}

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    let failure = match execute(cli.command) {
        Ok(()) => return ExitCode::SUCCESS,
        Err(failure) => failure,
    };
    let (code, text) = match failure {
        Failure::Failed(text) => (1, text),
        Failure::BadInput(text) => (2, text),
        Failure::Nobody(text) => (3, text),
        Failure::Findings => return ExitCode::from(2),
    };
    let _ = writeln!(std::io::stderr(), "millrace: {}", text.replace('\n', " "));
    ExitCode::from(code)
}

fn execute(command: Command) -> Result<(), Failure> {
    match command {
        Command::Run { config, stay } => {
            log();
            let config = load(&config)?;
            run::run(config, stay).map_err(|error| match error {
                RunError::Refused(text) => Failure::BadInput(text),
                RunError::Failed(text) => Failure::Failed(text),
            })
        }
        Command::Stop { admin, drain, runtime, stay: false } => stop_all(&admin.admin, drain.0, runtime),
        Command::Stop { admin, drain, runtime, stay: true } => stop_and_stay(&admin.admin, drain.0, runtime),
        Command::Check { config, manifests, offline } => check(&config, manifests, offline),
        Command::Status(args) => {
            let answer = admin::ask(&args.admin.admin, &Request::Status, PATIENCE)?;
            print(answer, args.output, |value, format, colour| {
                Ok(show::status(&serde_json::from_value(value)?, format, colour))
            })
        }
        Command::Services(args) => {
            list(&args, &Request::Services(args.filters()), args.most(usize::MAX), show::services)
        }
        Command::Backends(args) => {
            list(&args, &Request::Backends(args.filters()), args.most(usize::MAX), show::backends)
        }
        Command::Flows(args) => {
            let most = args.most(10_000);
            // One more tells whether there are more.
            let request = Request::Flows { filters: args.filters(), limit: most.saturating_add(1) };
            list(&args, &request, most, show::flows)
        }
        Command::Explain { source, destination, admin, output } => {
            let question = Question::parse(&source, &destination).map_err(Failure::BadInput)?;
            let answer = admin::ask(&admin.admin, &Request::Explain(question), PATIENCE)?;
            print(answer, output, |value, format, colour| {
                Ok(show::explanation(&serde_json::from_value(value)?, format, colour))
            })
        }
        Command::Drain(args) => drain(&args, true),
        Command::Undrain(args) => drain(&args, false),
    }
}

/// Structured logs on stderr; `MILLRACE_LOG` sets the level, as in `debug` or `info,agent=debug`.
fn log() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("MILLRACE_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let color = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(color).init();
}

fn load(path: &Path) -> Result<Config, Failure> {
    let (config, findings) = Config::load(path).map_err(|e| unreadable(path, &e))?;
    print_findings(&findings, &mut std::io::stderr());
    if check::any_error(&findings) { Err(Failure::Findings) } else { Ok(config) }
}

fn unreadable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::BadInput(format!("{}: {error}; name the configuration with --config", path.display()))
}

fn print_findings(findings: &[Finding], to: &mut dyn Write) {
    for finding in findings {
        let _ = writeln!(to, "{finding}");
    }
}

fn check(path: &Path, manifests: Vec<PathBuf>, offline: bool) -> Result<(), Failure> {
    let findings = check::check(path, manifests, offline).map_err(|e| unreadable(path, &e))?;
    print_findings(&findings, &mut std::io::stdout());
    if check::any_error(&findings) { Err(Failure::Findings) } else { Ok(()) }
}

impl ListArgs {
    fn filters(&self) -> Filters {
        Filters { service: self.service.clone(), backend: self.backend, source: self.source }
    }

    fn most(&self, default: usize) -> usize {
        self.limit.map_or(default, NonZeroUsize::get)
    }
}

/// Asks for a listing and shows it, at most `most` rows.
fn list<T: DeserializeOwned>(
    args: &ListArgs,
    request: &Request,
    most: usize,
    shown: fn(&[T], Format, bool) -> Shown,
) -> Result<(), Failure> {
    let answer = admin::ask(&args.admin.admin, request, PATIENCE)?;
    print(answer, args.output, |value, format, colour| {
        let mut rows: Vec<T> = serde_json::from_value(value)?;
        let more = rows.len() > most;
        rows.truncate(most);
        let note = format!("these are the first {most}; --limit gives more");
        let shown = shown(&rows, format, colour);
        Ok(if more { Shown { note: Some(note), ..shown } } else { shown })
    })
}

fn print(
    answer: serde_json::Value,
    output: Format,
    shown: impl FnOnce(serde_json::Value, Format, bool) -> serde_json::Result<Shown>,
) -> Result<(), Failure> {
    let unknown = |e| Failure::Failed(format!("the answer is not understood ({e}): is the instance of this version?"));
    let shown = shown(answer, output, show::wants_colour()).map_err(unknown)?;
    shown.print().map_err(|e| Failure::Failed(e.to_string()))
}

fn drain(args: &DrainArgs, on: bool) -> Result<(), Failure> {
    let BackendFilter { address, port } = args.backend;
    let answer = admin::ask(&args.admin.admin, &Request::Drain { address, port, on }, PATIENCE)?;
    let what = if on { "gets no new flows" } else { "gets new flows again" };
    say(&format!("{} {what} ({} endpoints)", args.backend, answer["endpoints"]));
    Ok(())
}

/// Asks a running instance to end and removes what it, or a dead one, left.
fn stop_all(socket: &Path, drain: Duration, runtime: Option<PathBuf>) -> Result<(), Failure> {
    let mut runtime = runtime.unwrap_or_else(|| socket.parent().unwrap_or(Path::new("/run/millrace")).to_owned());
    let mut ran = false;
    match ask_lasting(socket, &runtime) {
        Ok(value) => {
            let hello: Hello = serde_json::from_value(value).map_err(|e| Failure::Failed(e.to_string()))?;
            let drain_ms = u64::try_from(drain.as_millis()).unwrap_or(u64::MAX);
            let request = Request::Stop { drain_ms };
            let answer = admin::ask_following(socket, &request, drain.saturating_add(PATIENCE), &mut tell)?;
            let Draining { connections, .. } = serde_json::from_value(answer).unwrap_or_default();
            await_end(hello.pid)?;
            say(&format!("stopped with {} open", counted(connections)));
            runtime = hello.runtime;
            ran = true;
        }
        Err(AskError::Nobody(_)) if FlowFile::in_use(&runtime) => {
            let text = "is in use by an instance that does not listen at";
            let what = "name its socket with --admin, or end its process first";
            let text = format!("{} {text} {}: {what}", runtime.display(), socket.display());
            return Err(Failure::Failed(text));
        }
        Err(AskError::Nobody(_)) => {}
        Err(error) => return Err(error.into()),
    }
    let _claims = claim::keep_out(&runtime, ENDING).map_err(Failure::Failed)?;
    let left = stop::clean(&runtime, Some(socket)).map_err(Failure::Failed)?;
    if ran {
        // The instance's own folder, which its socket was the last in; other people's files keep it.
        let _ = std::fs::remove_dir(&runtime);
    }
    if ran || left {
        return Ok(());
    }
    Err(Failure::Nobody(format!("nothing runs at {} and nothing is left in {}", socket.display(), runtime.display())))
}

/// The same, where nothing being left is as good, and then waits to be ended.
fn stop_and_stay(socket: &Path, drain: Duration, runtime: Option<PathBuf>) -> Result<(), Failure> {
    let end: SigSet = [Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
    // From now on, so that one that comes early is not lost.
    end.thread_block().map_err(|error| Failure::Failed(format!("signals: {error}")))?;
    match stop_all(socket, drain, runtime) {
        Ok(()) => {}
        Err(Failure::Nobody(text)) => say(&text),
        Err(failure) => return Err(failure),
    }
    say("nothing is left; waiting to be ended");
    end.wait().map(drop).map_err(|error| Failure::Failed(format!("signals: {error}")))
}

/// Asks who is there; one that is being killed may take a moment, up to [`ENDING`], to be gone.
fn ask_lasting(socket: &Path, runtime: &Path) -> Result<serde_json::Value, AskError> {
    let deadline = Instant::now() + ENDING;
    loop {
        let answer = admin::ask(socket, &Request::Hello, PATIENCE);
        let ending = match &answer {
            Ok(_) | Err(AskError::NotASocket(_)) => false,
            Err(AskError::Nobody(_)) => FlowFile::in_use(runtime),
            Err(AskError::Io { .. } | AskError::Refused(_)) => true,
        };
        if !ending || Instant::now() >= deadline {
            return answer;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Tells on stderr how far draining is.
fn tell(progress: serde_json::Value) {
    let Ok(Draining { connections, remaining_ms }) = serde_json::from_value(progress) else { return };
    let seconds = Duration::from_millis(remaining_ms).as_secs_f64().ceil();
    let _ = writeln!(std::io::stderr(), "draining: {} open, {seconds} s left", counted(connections));
}

fn counted(connections: u64) -> String {
    match connections {
        0 => "no connection".to_owned(),
        1 => "1 connection".to_owned(),
        more => format!("{more} connections"),
    }
}

/// A line on stdout; a reader that closed the pipe has seen enough.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Waits until a process ended.
fn await_end(pid: u32) -> Result<(), Failure> {
    let deadline = Instant::now() + Duration::from_secs(10);
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap_or(i32::MAX));
    while nix::sys::signal::kill(pid, None).is_ok() {
        // A process that ended but was not waited for is as good as gone.
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        if stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')) {
            break;
        }
        if Instant::now() >= deadline {
            return Err(Failure::Failed(format!("process {pid} does not end; see its log")));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound_and_every_command_has_an_example() {
        let mut command = Cli::command();
        command.clone().debug_assert();
        for sub in command.get_subcommands_mut() {
            let help = sub.render_help().to_string();
            assert!(help.contains(&format!("Example: millrace {}", sub.get_name())), "{help}");
        }
    }

    #[test]
    fn lists_take_filters() {
        let cli = Cli::try_parse_from(["millrace", "flows", "--backend", "10.0.0.1:80", "-o", "json"]).unwrap();
        let Command::Flows(args) = cli.command else { panic!("flows") };
        assert_eq!(args.filters().backend, Some("10.0.0.1:80".parse().unwrap()));
        assert!(Cli::try_parse_from(["millrace", "stop", "--drain", "30"]).is_err());
        assert!(Cli::try_parse_from(["millrace", "flows", "--limit", "0"]).is_err());
        assert!(Cli::try_parse_from(["millrace", "status", "--service", "a/b"]).is_err(), "it would mean nothing");
    }
}
