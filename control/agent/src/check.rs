//! `millrace check`: everything that is wrong with a configuration and its manifests, and with what it asks of this host.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use lb::flow::FlowFile;
use translate::{Finding, Severity};

use crate::config::Config;
use crate::control;
use crate::host;
use crate::kubernetes;
use crate::linger::Places;
use crate::manifests::{self, LastGood};
use crate::occupied;
use crate::owners;
use crate::state::State;
use crate::steering::HostPorts;
use crate::stop;

/// Judges the configuration with its manifests, or with `instead` of those where any are named; `offline` leaves out
/// what is about this host.
///
/// # Errors
/// If the configuration cannot be read.
pub fn check(path: &Path, instead: Vec<PathBuf>, offline: bool) -> io::Result<Vec<Finding>> {
    let (mut config, mut findings) = Config::load(path)?;
    if !instead.is_empty() {
        config.manifests = instead;
    }
    let gathered = manifests::gather(&config.manifests);
    let mut context = control::static_context(&config);
    if !offline {
        context.node_addresses = on_this_host(host::addresses())?;
    }
    // Who has an address or a port already keeps it, as in a running instance.
    let kept = State::at(&config.state).load();
    let mut judged = manifests::judge(&gathered, &LastGood::default(), &context, &kept.given);
    findings.append(&mut judged.findings);
    if !offline {
        let served = if FlowFile::in_use(&config.runtime) { kept.places } else { Places::default() };
        let occupied = occupied::withhold(&mut judged.translation, &served, || HostPorts::read(BTreeSet::default()));
        findings.extend(occupied.into_iter().map(|(_, finding)| finding));
    }
    let mut objection = |field: &str, message: String| {
        let objection = host::Objection { field: field.to_owned(), message };
        findings.push(objection.finding(&config));
    };
    if config.snat.addresses.is_empty() {
        let message = "missing, expected an address of the backends' network that nobody else uses";
        objection("snat.addresses", message.to_owned());
    }
    if let Some(settings) = &config.kubernetes
        && !offline
        && let Err(error) = kubernetes::check(settings)
    {
        objection("kubernetes", error);
    }
    if let Some(heartbeat) = config.kubernetes.as_ref().and_then(|settings| settings.heartbeat.as_ref())
        && !offline
        && let Err(error) = owners::check(heartbeat)
    {
        objection("kubernetes.heartbeat", error);
    }
    if !offline {
        if let Err(error) = crate::admin::is_there(&config.admin) {
            objection("admin", error.to_string());
        }
        if let Err(error) = stop::usable(&config.runtime) {
            objection("runtime", error);
        }
        let found = on_this_host(host::judge(&config))?.into_iter();
        // That there is none was said.
        let found = found.filter(|o| !(o.field == "snat.addresses" && config.snat.addresses.is_empty()));
        findings.extend(found.map(|objection| objection.finding(&config)));
    }
    for finding in &mut findings {
        // A file as a whole is meant by its first line: whoever follows `file:line` gets there.
        finding.line = finding.line.max(1);
    }
    Ok(findings)
}

fn on_this_host<T>(question: impl Future<Output = Result<T, String>>) -> io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(question).map_err(io::Error::other)
}

/// Whether any of these is an error.
#[must_use]
pub fn any_error(findings: &[Finding]) -> bool {
    findings.iter().any(|finding| finding.severity == Severity::Error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(config: &Path, instead: &[&Path], offline: bool) -> Vec<String> {
        let instead = instead.iter().map(|path| path.to_path_buf()).collect();
        check(config, instead, offline).unwrap().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn errors_in_configuration_manifests_and_what_is_asked_of_the_host_are_found() {
        let folder = std::env::temp_dir().join(format!("millrace-check-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("services")).unwrap();
        let config = folder.join("m.yaml");
        let text = "interfaces: [none0]\nmanifests: [/none]\nsnat:\n  addresses: [192.0.2.1]\n";
        std::fs::write(&config, format!("{text}runtime: {}/run\n", folder.display())).unwrap();
        let services = folder.join("services");
        let none = folder.join("none");
        assert!(said(&config, &[&none], true)[0].contains("cannot be read"));
        assert!(said(&config, &[], true)[0].starts_with("/none:1: file: cannot be read"));
        assert_eq!(said(&config, &[&services], true), Vec::<String>::new());
        let found = said(&config, &[&services], false);
        assert!(found[0].contains("m.yaml:1: interfaces[0]: there is no interface `none0`"), "{found:?}");
        std::fs::create_dir_all(folder.join("run")).unwrap();
        std::fs::write(folder.join("run/flows"), "precious").unwrap();
        let found = said(&config, &[&services], false);
        assert!(found[0].contains("m.yaml:5: runtime: ") && found[0].contains("is not a flow file"), "{found:?}");
        assert!(check(&folder.join("no.yaml"), Vec::new(), true).is_err());
        std::fs::remove_dir_all(folder).unwrap();
    }
}
