//! The command line. Data goes to stdout, errors to stderr in one line that says what to do.
//!
//! Exit codes: 0 done, 1 failed, 2 bad input or configuration, 3 no running instance.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand};
use translate::Finding;

use crate::admin::{self, AskError, Hello, Request};
use crate::config::{Config, DEFAULT_ADMIN, DEFAULT_PATH, Span};
use crate::explain::Question;
use crate::manifests::{self, LastGood};
use crate::run::{self, RunError};
use crate::show::{self, Format, Shown};
use crate::state::State;
use crate::view::{BackendFilter, Filters};
use crate::{control, stop};

/// How long a running instance may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

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
    /// Only of this Service
    #[arg(long, value_name = "NAMESPACE/NAME")]
    service: Option<String>,
    /// Only of this backend
    #[arg(long, value_name = "IP[:PORT]")]
    backend: Option<BackendFilter>,
    /// Only of this client
    #[arg(long, value_name = "IP")]
    source: Option<std::net::IpAddr>,
    /// Most rows (flows)
    #[arg(long, default_value_t = 10_000)]
    limit: usize,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run in the foreground; SIGTERM leaves steering and flows to a successor, SIGHUP reloads
    #[command(after_help = "Example: millrace run --config /etc/millrace/millrace.yaml")]
    Run {
        /// The configuration
        #[arg(long, value_name = "FILE", default_value = DEFAULT_PATH)]
        config: PathBuf,
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
    },
    /// Check the configuration and manifests; exit 2 with errors
    #[command(after_help = "Example: millrace check --config millrace.yaml --manifests services/")]
    Check {
        /// The configuration
        #[arg(long, value_name = "FILE", default_value = DEFAULT_PATH)]
        config: PathBuf,
        /// Manifests in place of the configuration's
        #[arg(long, value_name = "PATH", num_args = 1..)]
        manifests: Vec<PathBuf>,
    },
    /// Version, uptime, interfaces, workers, drops
    #[command(after_help = "Example: millrace status -o json")]
    Status(ListArgs),
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
        /// To where, ADDRESS:PORT/tcp or /udp
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
        Command::Run { config } => {
            log();
            let config = load(&config)?;
            run::run(config).map_err(|error| match error {
                RunError::Refused(text) => Failure::BadInput(text),
                RunError::Failed(text) => Failure::Failed(text),
            })
        }
        Command::Stop { admin, drain, runtime } => stop_all(&admin.admin, drain.0, runtime),
        Command::Check { config, manifests } => check(&config, manifests),
        Command::Status(args) => list(&args, &Request::Status, |value, format, colour| {
            Ok(show::status(&serde_json::from_value(value)?, format, colour))
        }),
        Command::Services(args) => list(&args, &Request::Services(args.filters()), |value, format, colour| {
            Ok(show::services(&serde_json::from_value::<Vec<_>>(value)?, format, colour))
        }),
        Command::Backends(args) => list(&args, &Request::Backends(args.filters()), |value, format, colour| {
            Ok(show::backends(&serde_json::from_value::<Vec<_>>(value)?, format, colour))
        }),
        Command::Flows(args) => {
            let request = Request::Flows { filters: args.filters(), limit: args.limit };
            list(&args, &request, |value, format, colour| {
                Ok(show::flows(&serde_json::from_value::<Vec<_>>(value)?, format, colour))
            })
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
    let (config, findings) = read_config(path)?;
    print_findings(&findings, &mut std::io::stderr());
    if findings.iter().any(Finding::is_error) { Err(Failure::Findings) } else { Ok(config) }
}

fn read_config(path: &Path) -> Result<(Config, Vec<Finding>), Failure> {
    Config::load(path).map_err(|e| Failure::BadInput(format!("{}: {e}; name it with --config", path.display())))
}

fn print_findings(findings: &[Finding], to: &mut dyn Write) {
    for finding in findings {
        let _ = writeln!(to, "{finding}");
    }
}

fn check(path: &Path, manifests: Vec<PathBuf>) -> Result<(), Failure> {
    let (mut config, mut findings) = read_config(path)?;
    if !manifests.is_empty() {
        config.manifests = manifests;
    }
    let gathered = manifests::gather(&config.manifests);
    let context = control::static_context(&config);
    // Who has an address already keeps it, as in a running instance.
    let given = State::at(&config.state).load().given;
    findings.extend(manifests::judge(&gathered, &LastGood::default(), &context, &given).findings);
    if config.snat.addresses.is_empty() {
        findings.push(Finding {
            file: config.path.display().to_string(),
            line: config.snat.line.max(1),
            field: "snat.addresses".to_owned(),
            message: "missing, expected an address of the backends' network that nobody else uses".to_owned(),
            severity: translate::Severity::Error,
        });
    }
    for finding in &mut findings {
        // A file as a whole is meant by its first line: whoever follows `file:line` gets there.
        finding.line = finding.line.max(1);
    }
    print_findings(&findings, &mut std::io::stdout());
    if findings.iter().any(Finding::is_error) { Err(Failure::Findings) } else { Ok(()) }
}

impl ListArgs {
    fn filters(&self) -> Filters {
        Filters { service: self.service.clone(), backend: self.backend, source: self.source }
    }
}

type Show = fn(serde_json::Value, Format, bool) -> serde_json::Result<Shown>;

fn list(args: &ListArgs, request: &Request, shown: Show) -> Result<(), Failure> {
    print(admin::ask(&args.admin.admin, request, PATIENCE)?, args.output, shown)
}

fn print(answer: serde_json::Value, output: Format, shown: Show) -> Result<(), Failure> {
    let unknown = |e| Failure::Failed(format!("the answer is not understood ({e}): is the instance of this version?"));
    let shown = shown(answer, output, show::wants_colour()).map_err(unknown)?;
    shown.print().map_err(|e| Failure::Failed(e.to_string()))
}

fn drain(args: &DrainArgs, on: bool) -> Result<(), Failure> {
    let BackendFilter { address, port } = args.backend;
    let answer = admin::ask(&args.admin.admin, &Request::Drain { address, port, on }, PATIENCE)?;
    let what = if on { "gets no new flows" } else { "gets new flows again" };
    println!("{} {what} ({} endpoints)", args.backend, answer["endpoints"]);
    Ok(())
}

/// Asks a running instance to end and removes what it, or a dead one, left.
fn stop_all(socket: &Path, drain: Duration, runtime: Option<PathBuf>) -> Result<(), Failure> {
    let mut runtime = runtime.unwrap_or_else(|| socket.parent().unwrap_or(Path::new("/run/millrace")).to_owned());
    let mut ran = false;
    match admin::ask(socket, &Request::Hello, PATIENCE) {
        Ok(value) => {
            let hello: Hello = serde_json::from_value(value).map_err(|e| Failure::Failed(e.to_string()))?;
            let drain_ms = u64::try_from(drain.as_millis()).unwrap_or(u64::MAX);
            admin::ask(socket, &Request::Stop { drain_ms }, drain + PATIENCE)?;
            await_end(hello.pid)?;
            runtime = hello.runtime;
            ran = true;
        }
        Err(AskError::Nobody(_)) => {}
        Err(error) => return Err(error.into()),
    }
    let left = stop::clean(&runtime, socket).map_err(Failure::Failed)?;
    if ran || left {
        return Ok(());
    }
    Err(Failure::Nobody(format!("nothing runs at {} and nothing is left in {}", socket.display(), runtime.display())))
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
    }

    #[test]
    fn check_finds_errors_in_configuration_and_manifests() {
        let folder = std::env::temp_dir().join(format!("millrace-check-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let config = folder.join("m.yaml");
        std::fs::write(&config, "interfaces: [eth0]\nmanifests: [/none]\nsnat: {addresses: [192.0.2.1]}\n").unwrap();
        assert!(matches!(check(&config, vec![folder.join("none")]), Err(Failure::Findings)));
        let services = folder.join("s");
        std::fs::create_dir_all(&services).unwrap();
        assert!(check(&config, vec![services]).is_ok());
        assert!(matches!(check(&folder.join("no.yaml"), Vec::new()), Err(Failure::BadInput(_))));
        std::fs::remove_dir_all(folder).unwrap();
    }
}
