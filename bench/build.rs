//! Compiles the sender and the bare forwarder's XDP program with clang, for the BPF target, and notes which commit is built.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

const PROGRAMS: [&str; 2] = ["send", "bare"];
const PACKAGES: &str = "on Debian: apt-get install clang llvm libbpf-dev linux-libc-dev";

fn main() {
    println!("cargo::rerun-if-env-changed=CLANG");
    let clang = env::var("CLANG").unwrap_or_else(|_| "clang".into());
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    for program in PROGRAMS {
        let source = format!("bpf/{program}.bpf.c");
        println!("cargo::rerun-if-changed={source}");
        compile(&clang, &source, &out.join(format!("{program}.o")));
    }
    println!("cargo::rustc-env=MILLRACE_COMMIT={}", commit());
}

/// The commit that is checked out; `unknown` outside a repository.
fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    // Whatever moves the head writes here.
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]) {
        println!("cargo::rerun-if-changed={log}");
    }
    git(&["rev-parse", "--short", "HEAD"]).unwrap_or_else(|| "unknown".into())
}

fn compile(clang: &str, source: &str, object: &Path) {
    let mut command = Command::new(clang);
    command.args(["-target", "bpf", "-mcpu=v3", "-O2", "-g", "-Wall", "-Wextra", "-Werror"]);
    // The BPF target has no default for the directory that holds <asm/types.h> on multi-arch systems.
    if let Ok(arch) = env::var("CARGO_CFG_TARGET_ARCH") {
        command.arg(format!("-I/usr/include/{arch}-linux-gnu"));
    }
    // The object must not depend on where it was built.
    let here = env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    command.arg(format!("-ffile-prefix-map={here}=."));
    command.args(["-c", source, "-o"]).arg(object);
    match command.output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            let complaint = String::from_utf8_lossy(&output.stderr);
            let hint = if complaint.contains("file not found") { PACKAGES } else { "see clang's complaint above" };
            panic!("cannot compile {source}:\n{complaint}\n{hint}");
        }
        Err(error) => panic!("cannot run {clang}, which compiles {source}: {error}\n{PACKAGES}"),
    }
}
