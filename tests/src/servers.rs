//! Real servers of Debian: nginx and dnsmasq, configured into a folder of the lab.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::lab::{Host, Process};
use crate::wait::eventually;

/// nginx that answers `name` to every request on each of `listen` (`10.0.0.1:80`, `[fd00::1]:80`); keeps connections
/// alive for long.
///
/// # Panics
/// If it does not listen in time.
#[must_use]
pub fn nginx(host: &Host, dir: &Path, name: &str, listen: &[&str]) -> Process {
    nginx_with(host, dir, name, listen, "off")
}

/// The same, with an access log: a line for each request, which begins with the client's address as nginx sees it. Also
/// says where that is.
///
/// # Panics
/// If it does not listen in time.
#[must_use]
pub fn nginx_with_log(host: &Host, dir: &Path, name: &str, listen: &[&str]) -> (Process, PathBuf) {
    let log = dir.join(format!("access-{name}.log"));
    let process = nginx_with(host, dir, name, listen, &log.display().to_string());
    (process, log)
}

fn nginx_with(host: &Host, dir: &Path, name: &str, listen: &[&str], access_log: &str) -> Process {
    let home = dir.join(format!("nginx-{name}"));
    fs::create_dir_all(&home).expect("nginx's folder");
    fs::write(home.join("big"), vec![b'x'; 1 << 20]).expect("a big file");
    let listens: String = listen.iter().map(|l| format!("    listen {l} backlog=4096 reuseport;\n")).collect();
    let home_name = home.display();
    let text = format!(
        "daemon off;\nmaster_process off;\nuser root;\npid {home_name}/pid;\nerror_log {home_name}/error.log;\n\
         events {{ worker_connections 8192; }}\nworker_rlimit_nofile 16384;\n\
         http {{\n  access_log {access_log};\n  keepalive_timeout 600s;\n  keepalive_requests 1000000;\n\
         client_body_temp_path {home_name}/body; proxy_temp_path {home_name}/proxy; fastcgi_temp_path {home_name}/f;\n\
         uwsgi_temp_path {home_name}/u; scgi_temp_path {home_name}/s;\n\
         server {{\n{listens}    root {home_name};\n    location = /big {{ }}\n\
         location / {{ default_type text/plain; return 200 \"{name} $remote_addr\\n\"; }}\n  }}\n}}\n"
    );
    let config = home.join("nginx.conf");
    fs::write(&config, text).expect("nginx's configuration");
    let mut command = host.command("nginx");
    command.arg("-c").arg(&config).arg("-e").arg(home.join("error.log"));
    let mut process = host.spawn("nginx", command, &home.join("log"));
    await_listener(host, &mut process, &["-Hltn"], listen.len(), &home);
    process
}

/// What [`nginx`] answers at this URL within some seconds: its name, and the address that it sees.
///
/// # Errors
/// What curl says, and its exit code: 7 is refused, 28 is no answer.
pub fn who(client: &Host, url: &str, seconds: u32) -> Result<(String, String), String> {
    let output = client.output("curl", ["-gsS", "--max-time", &seconds.to_string(), url]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut words = text.split_whitespace().map(str::to_owned);
    let answer = words.next().zip(words.next());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    answer.ok_or_else(|| format!("{text}{}, {}", said.trim(), output.status))
}

/// dnsmasq that answers `who.test TXT` with its name, every A query for `test` with `answer` and `_web._tcp.test SRV` with
/// port 80 of `web.test`, on UDP and TCP 53.
///
/// # Panics
/// If it does not listen in time.
#[must_use]
pub fn dns(host: &Host, dir: &Path, name: &str, listen: &str, answer: &str) -> Process {
    let home = dir.join(format!("dns-{name}"));
    fs::create_dir_all(&home).expect("dnsmasq's folder");
    let mut command = host.command("dnsmasq");
    command.args(["--keep-in-foreground", "--no-daemon", "--no-resolv", "--no-hosts", "--conf-file=/dev/null"]);
    command.args(["--bind-interfaces", "--except-interface=lo", "--user=root", "--log-facility=-", "--cache-size=0"]);
    command.arg(format!("--pid-file={}/pid", home.display()));
    command.arg(format!("--listen-address={listen}")).arg(format!("--address=/test/{answer}"));
    command.arg(format!("--txt-record=who.test,{name}")).arg("--srv-host=_web._tcp.test,web.test,80");
    let mut process = host.spawn("dnsmasq", command, &home.join("log"));
    for flags in ["-Hlun", "-Hltn"] {
        await_listener(host, &mut process, &[flags, "sport = :53"], 1, &home);
    }
    process
}

fn await_listener(host: &Host, process: &mut Process, words: &[&str], count: usize, home: &Path) {
    let what = format!("{} on {} listens", process.name, host.netns);
    eventually(&what, Duration::from_secs(30), || {
        if !process.is_running() {
            let log = fs::read_to_string(home.join("log")).unwrap_or_default();
            panic!("{} ended: {log}", process.name);
        }
        let text = host.run("ss", words);
        if text.lines().count() >= count { Ok(()) } else { Err(text) }
    });
}

/// Says which of the lab's programs are missing.
///
/// # Panics
/// If one is.
pub fn require(programs: &[&str]) {
    for program in programs {
        let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).output();
        assert!(
            found.is_ok_and(|o| o.status.success()),
            "{program} is not installed: `make setup` installs what the tests need"
        );
    }
}
