//! `make demo`'s program, from beginning to end.

use std::process::{Command, Stdio};

use millrace_tests::millrace::binary;
use millrace_tests::servers;

#[test]
fn the_demo_shows_who_answered_and_ends_well() {
    servers::require(&["dnsmasq", "dig", "curl", "nginx"]);
    let demo = binary().with_file_name("demo");
    let mut command = Command::new(&demo);
    // Whoever runs the tests may have exported it; the demo would wait for Enter.
    command.env_remove("STAY").stdin(Stdio::null());
    let output = command.output().unwrap_or_else(|e| panic!("{}: {e}: `cargo build --bins` first", demo.display()));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{out}\n{err}", output.status);
    // Everybody of whom it is told answers: the web servers, DNS on both transports, the machine behind a router.
    for who in ["IPv4: b1 ", "IPv6: b1 ", "b2 ", "b3 ", "+notcp: b", "+tcp: b", "machine-1.2.3.4 5 times"] {
        assert!(out.contains(who), "{who:?} is missing in\n{out}");
    }
    println!("{out}");
}
