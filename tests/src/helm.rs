//! The upstream Helm, of `tests/helm`, and what it and kustomize make of `deploy/kubernetes`.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::kubelab::{self, Kubelab};
use crate::lab::run;

/// The namespace that everything is in.
pub const NAMESPACE: &str = "millrace-system";

/// The binary, built where it is not cached.
///
/// # Panics
/// If it cannot be built, with what to do.
#[must_use]
pub fn binary() -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("helm/build.sh");
    run(script.to_str().expect("a path"), [""; 0]).trim().into()
}

/// A file or folder of `deploy/kubernetes`.
#[must_use]
pub fn deploy(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/kubernetes").join(name)
}

fn finished(command: &mut Command) -> Result<String, String> {
    let output = command.output().expect("helm runs");
    let text = |octets: &[u8]| String::from_utf8_lossy(octets).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// What the chart comes to with these words, such as `--set image.tag=2`.
///
/// # Errors
/// What Helm says against it.
pub fn template(words: &[&str]) -> Result<String, String> {
    let mut command = Command::new(binary());
    command.args(["template", "millrace"]).arg(deploy("chart")).args(["--include-crds", "--namespace", NAMESPACE]);
    finished(command.args(words))
}

/// Runs Helm against a cluster; the chart is the last word.
///
/// # Errors
/// What Helm says.
pub fn run_on(kubelab: &Kubelab, words: &[&str]) -> Result<String, String> {
    let mut command = kubelab.host.command(binary());
    command.env("KUBECONFIG", kubelab.kubeconfig()).env("HOME", kubelab.kubeconfig().with_file_name("helm"));
    finished(command.args(words).args(["--namespace", NAMESPACE]))
}

/// What a kustomization comes to.
///
/// # Panics
/// If it cannot be built.
#[must_use]
pub fn kustomize(folder: &str) -> String {
    let folder = deploy(folder);
    run(kubelab::binary().to_str().expect("a path"), ["kubectl".as_ref(), "kustomize".as_ref(), folder.as_os_str()])
}
