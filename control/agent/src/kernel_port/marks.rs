//! What endpoints answer to clients' own addresses (mode `preserve`) is brought back by a mark: a connection that came out of
//! the kernel port has it from its first packet on, its answers get it back, and a rule routes what has it into the port.
//!
//! By the sport it cannot be told, for others reach the same endpoints past us. What the host itself gets though it is none of
//! a flow's is told by the source of its frame, and has no mark. Source: nft(8).

use std::io::{self, Read, Write};
use std::process::{Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::KERNELS;

/// The mark, a bit: kube-proxy, Calico and Cilium use others.
pub(super) const MARK: u32 = 0x20;

/// How long nft may take: it needs milliseconds, and who waits for it may have nothing else done meanwhile.
const LIMIT: Duration = Duration::from_secs(5);
/// How often it is looked whether it ended.
const PAUSE: Duration = Duration::from_millis(2);

/// Has connections that come out of the kernel's end marked; `ours` is the link-layer address of our end.
pub(super) fn set(ours: &[u8]) -> Result<(), String> {
    let ours = ours.iter().map(|octet| format!("{octet:02x}")).collect::<Vec<_>>().join(":");
    let answers = format!("ct direction reply ct mark and {MARK:#x} == {MARK:#x} meta mark set meta mark or {MARK:#x}");
    // What else is in the table goes on: a predecessor may be using it.
    nft(&format!(
        "add table inet millrace\n\
         add chain inet millrace into {{ type filter hook prerouting priority -150; policy accept; }}\n\
         add chain inet millrace own {{ type route hook output priority -150; policy accept; }}\n\
         flush chain inet millrace into\nflush chain inet millrace own\n\
         add rule inet millrace into iifname {KERNELS:?} ether saddr {ours} ct state new ct mark set ct mark or {MARK:#x}\n\
         add rule inet millrace into iifname != {KERNELS:?} {answers}\n\
         add rule inet millrace own {answers}\n"
    ))
}

/// Removes what [`set`] made, if it is there.
pub(super) fn remove() -> Result<(), String> {
    if has(&["table", "inet", "millrace"]) { nft("delete table inet millrace\n") } else { Ok(()) }
}

/// Whether what [`set`] made is there.
///
/// # Errors
/// If nft does not end.
pub(super) fn are_set() -> Result<bool, String> {
    has_rules(&["into", "own"], "ct mark")
}

/// Whether nftables has something: words as `nft list` takes them.
pub(super) fn has(words: &[&str]) -> bool {
    let words: Vec<&str> = ["list"].into_iter().chain(words.iter().copied()).collect();
    run("nft", &words, "", LIMIT).is_ok_and(|ran| ran.succeeded)
}

/// Whether the table has these chains, each with a rule that has this word.
///
/// # Errors
/// If nft does not end.
pub(super) fn has_rules(chains: &[&str], word: &str) -> Result<bool, String> {
    // Without what is in sets: there may be thousands of NodePorts.
    let listed = run("nft", &["-t", "list", "table", "inet", "millrace"], "", LIMIT)?;
    Ok(listed.succeeded && chains.iter().all(|chain| chain_has(&listed.output, chain, word)))
}

/// Whether a listing of a table has this chain with this word in it.
fn chain_has(listed: &str, chain: &str, word: &str) -> bool {
    let begins = format!("{chain} {{");
    listed.split("\tchain ").any(|part| part.starts_with(&begins) && part.contains(word))
}

/// Has nftables take these commands, all or none.
pub(super) fn nft(rules: &str) -> Result<(), String> {
    let ran = run("nft", &["-f", "-"], rules, LIMIT)?;
    if ran.succeeded {
        return Ok(());
    }
    let said = ran.errors.lines().next().unwrap_or("no reason given");
    Err(format!("nft refuses the rules of the kernel port: {said}"))
}

/// How a program ended and what it wrote.
struct Ran {
    succeeded: bool,
    output: String,
    errors: String,
}

/// Runs a program of nftables with this input. After the time `limit` it is killed and not waited for: who is stuck within the
/// kernel does not end by that either, and callers have packets to see to.
fn run(program: &str, words: &[&str], input: &str, limit: Duration) -> Result<Ran, String> {
    let failed = |error: io::Error| format!("`{program}` does not run ({error}): install nftables");
    let mut command = Command::new(program);
    command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(failed)?;
    let (stdin, input) = (child.stdin.take(), input.to_owned());
    // All at once, for pipes hold only so much. Whether it took its input is told by how it ends.
    thread::spawn(move || stdin.map(|mut stdin| stdin.write_all(input.as_bytes())));
    let (output, errors) = (read(child.stdout.take()), read(child.stderr.take()));
    let until = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().map_err(failed)? {
            let whole = |reading: JoinHandle<String>| reading.join().unwrap_or_default();
            return Ok(Ran { succeeded: status.success(), output: whole(output), errors: whole(errors) });
        }
        if Instant::now() >= until {
            break;
        }
        thread::sleep(PAUSE);
    }
    let _ = child.kill();
    thread::spawn(move || child.wait());
    let words = words.join(" ");
    let help = "see by `nft list ruleset` whether nftables answers on this host";
    Err(format!("`{program} {words}` did not end within {limit:?} and was killed: {help}"))
}

/// Reads to the end, on a thread of its own.
fn read(from: Option<impl Read + Send + 'static>) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut text = Vec::new();
        if let Some(mut from) = from {
            let _ = from.read_to_end(&mut text);
        }
        String::from_utf8_lossy(&text).into_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_does_not_end_is_killed_and_the_error_says_which() {
        let begun = Instant::now();
        let error = run("sleep", &["60"], "", Duration::from_millis(50)).map(|ran| ran.succeeded).unwrap_err();
        assert!(error.contains("`sleep 60` did not end within 50ms"), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn what_a_program_writes_is_had_whole_whatever_pipes_hold() {
        let text = "x".repeat(1 << 20);
        let ran = run("cat", &[], &text, Duration::from_secs(30)).map(|ran| (ran.succeeded, ran.output));
        assert!(ran == Ok((true, text)), "all of it");
    }

    #[test]
    fn a_chain_without_its_rule_is_not_there() {
        let listed = "table inet millrace {\n\tchain into {\n\t\ttype filter hook prerouting priority -150;\n\t}\n\n\
                      \tchain own {\n\t\ttype route hook output priority -150;\n\t\tct mark 1\n\t}\n}\n";
        let found = ["into", "own", "redirect-in"].map(|chain| chain_has(listed, chain, "ct mark"));
        assert_eq!(found, [false, true, false]);
    }
}
