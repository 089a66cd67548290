//! Reading any manifest: findings name lines that exist, what is sound is translated, and a second reading says the same.

use std::sync::Arc;

use translate::{AddressRange, Context, Given, Pool, Serve, Source, read, read_after, translate};

/// Reads the text that the input is, as a file of manifests.
///
/// # Panics
/// Where a finding points nowhere, or reading again gives something else.
pub fn run(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if text.len() > 64 * 1024 {
        return;
    }
    let source = Source { path: "manifests.yaml".into(), text: text.into() };
    let given = Given::default();
    let (objects, findings) = read(std::slice::from_ref(&source), &given);
    let lines = text.lines().count().max(1) as u32;
    for finding in &findings {
        assert!(finding.line <= lines, "{finding} in {lines} lines");
        assert!(!finding.message.is_empty());
    }
    let once = translate(&objects, &context(), &given);
    // A file beside it that says nothing changes nothing.
    let sources = [source, Source { path: "other.yaml".into(), text: Arc::from("# nothing") }];
    let former = read_after(None, &sources[..1], &given);
    let again = read_after(Some(&former), &sources, &given);
    assert_eq!(findings, again.findings);
    let again = translate(&again.objects, &context(), &given);
    assert_eq!(once.desired, again.desired);
    assert_eq!(once.findings, again.findings);
}

fn context() -> Context {
    let range = |text: &str| text.parse::<AddressRange>().expect("a range");
    Context {
        serve: Serve { load_balancer: true, external_ips: true, cluster_ip: true, node_port: true },
        pools: vec![Pool::new("public", vec![range("203.0.113.0/28"), range("2001:db8::/124")])],
        service_ranges: vec!["10.96.0.0/16".parse().expect("a prefix"), "fd00:10:96::/112".parse().expect("a prefix")],
        node_addresses: vec!["192.0.2.1".parse().expect("an address")],
        ..Context::default()
    }
}
