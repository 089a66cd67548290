//! The lab itself: without Millrace, its hosts reach each other and it cleans up after itself.

use std::process::Command;

use millrace_tests::load;
use millrace_tests::topology::Network;

#[test]
fn hosts_reach_each_other_and_nothing_stays_behind() {
    let network = Network::one_nic("lab", 2, 1);
    let names: Vec<String> = network.backends.iter().map(|b| b.netns.clone()).collect();
    let dir = network.lab.dir().to_owned();
    for ipv6 in [false, true] {
        let target = std::net::SocketAddr::new(network.backend_address(1, ipv6), 8080);
        let outcome = load::requests(&network.client, target, 50, 5);
        assert_eq!((outcome.answered, outcome.failures.len()), (50, 0), "{outcome:?}");
        assert_eq!(outcome.by_server.get("b1"), Some(&50));
    }
    drop(network);
    let left =
        String::from_utf8(Command::new("ip").args(["netns", "list"]).output().expect("ip").stdout).expect("text");
    for name in names {
        assert!(!left.contains(&name), "{name} is left behind");
    }
    assert!(!dir.exists(), "the lab's folder is left behind");
}
