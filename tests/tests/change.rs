//! Manifests that change under load, and manifests that are wrong.

use std::fs;
use std::time::Duration;

use millrace_tests::load;
use millrace_tests::millrace::Gateway;
use millrace_tests::topology::Network;
use millrace_tests::wait::eventually;

fn await_generation(gateway: &Gateway, more_than: u64) {
    eventually("a change is in force", Duration::from_secs(5), || {
        let now = gateway.json(&["status"])["generation"].as_u64().unwrap_or(0);
        if now > more_than { Ok(()) } else { Err(format!("generation {now}")) }
    });
}

fn generation(gateway: &Gateway) -> u64 {
    gateway.json(&["status"])["generation"].as_u64().expect("a generation")
}

#[test]
fn two_hundred_changes_under_load_break_no_connection_and_fail_no_request() {
    let network = Network::two_nics("change", 3, 1);
    let mut gateway = Gateway::new(&network.gateway, network.lab.dir(), &network.config(""));
    gateway.manifest("web.yaml", &network.manifest(&[1, 2, 3], &[]));
    let _process = gateway.start();
    let held = load::hold(&network.client, network.vip(false), 30, Duration::from_millis(20));
    held.await_answers(100, Duration::from_secs(10));
    let client = network.client.clone();
    let target = network.vip(false);
    let requests = std::thread::spawn(move || load::requests(&client, target, 6_000, 10));
    // b3 comes and goes, weights move; b1 and b2 stay. b3's server stays up, as a pod being drained does.
    for turn in 0..200_usize {
        let before = generation(&gateway);
        let numbers: &[usize] = if turn % 2 == 0 { &[1, 2] } else { &[1, 2, 3] };
        let weights = format!("millrace.dev/weights: \"{}={}\"", network.backend_address(1, false), 1 + turn % 7);
        gateway.manifest("web.yaml", &network.manifest(numbers, &[&weights]));
        await_generation(&gateway, before);
    }
    held.await_answers(100, Duration::from_secs(10));
    let held = held.finish();
    assert!(held.failures.is_empty(), "established connections broke: {:?}", held.failures);
    let requests = requests.join().expect("the requests");
    assert!(requests.failures.is_empty(), "requests failed: {:?}", requests.failures);
    println!("held {} answers, requests {} answers over 200 changes", held.answered, requests.answered);
}

#[test]
fn a_bad_manifest_is_named_by_file_line_and_field_and_the_old_state_keeps_serving() {
    let network = Network::two_nics("bad", 1, 1);
    let mut gateway = Gateway::new(&network.gateway, network.lab.dir(), &network.config(""));
    let good = network.manifest(&[1], &[]);
    gateway.manifest("web.yaml", &good);
    let _process = gateway.start();
    let clash = "apiVersion: v1\nkind: Service\nmetadata:\n  name: clash\n  annotations:\n    \
         millrace.dev/addresses: 10.81.1.100\nspec:\n  type: LoadBalancer\n  ports:\n  - port: 80\n";
    let cases = [
        ("broken YAML", "web.yaml", "apiVersion: v1\nkind: [Service\n".to_owned(), "web.yaml:"),
        (
            "an unknown annotation",
            "web.yaml",
            network.manifest(&[1], &["millrace.dev/colour: red"]),
            "millrace.dev/colour",
        ),
        (
            "an impossible Endpoints address",
            "web.yaml",
            good.replace(&format!("\"{}\"", network.backend_address(1, false)), "\"127.0.0.1\""),
            "127.0.0.1",
        ),
        ("a port clash", "zz-clash.yaml", clash.to_owned(), "10.81.1.100"),
    ];
    for (what, file, text, names) in cases {
        gateway.manifest(file, &text);
        let output = gateway
            .host
            .command(millrace_tests::millrace::binary())
            .args(["check", "--config"])
            .arg(gateway.config())
            .output()
            .expect("millrace check");
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{what}: check says {said}");
        let line = said.lines().find(|l| l.contains(names)).unwrap_or_else(|| panic!("{what}: {said}"));
        let place = line.split(file).nth(1).and_then(|rest| rest.strip_prefix(':')).unwrap_or("");
        assert!(place.starts_with(|c: char| c.is_ascii_digit()), "{what}: no file and line in {line:?}");
        eventually("the running instance says it too", Duration::from_secs(5), || {
            let log = gateway.log_text();
            if log.contains(names) { Ok(()) } else { Err(log) }
        });
        let outcome = load::requests(&network.client, network.vip(false), 20, 4);
        assert_eq!((outcome.answered, outcome.failures.len()), (20, 0), "{what}: no longer served: {outcome:?}");
        println!("{what}: {line}");
        gateway.manifest("web.yaml", &good);
        let _ = fs::remove_file(gateway.dir.join("manifests/zz-clash.yaml"));
    }
}
