//! Compiles the steering program with clang, for the BPF target.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

const SOURCE: &str = "src/steering.bpf.c";
const PACKAGES: &str = "on Debian: apt-get install clang llvm libbpf-dev linux-libc-dev";

fn main() {
    println!("cargo::rerun-if-changed={SOURCE}");
    println!("cargo::rerun-if-env-changed=CLANG");
    let clang = env::var("CLANG").unwrap_or_else(|_| "clang".into());
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("steering.o");
    let mut command = Command::new(&clang);
    command.args(["-target", "bpf", "-mcpu=v3", "-O2", "-g", "-Wall", "-Wextra", "-Werror"]);
    // The BPF target has no default for the directory that holds <asm/types.h> on multi-arch systems.
    if let Some(dir) = multiarch_headers() {
        command.arg(format!("-I{}", dir.display()));
    }
    // The object must not depend on where it was built.
    let here = env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    command.arg(format!("-ffile-prefix-map={here}=."));
    command.args(["-c", SOURCE, "-o"]).arg(&out);
    match command.output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            let complaint = String::from_utf8_lossy(&output.stderr);
            let hint = if complaint.contains("file not found") { PACKAGES } else { "see clang's complaint above" };
            panic!("cannot compile {SOURCE}:\n{complaint}\n{hint}");
        }
        Err(error) => panic!("cannot run {clang}, which compiles the steering program: {error}\n{PACKAGES}"),
    }
}

fn multiarch_headers() -> Option<PathBuf> {
    let arch = env::var("CARGO_CFG_TARGET_ARCH").ok()?;
    let dir = Path::new("/usr/include").join(format!("{arch}-linux-gnu"));
    dir.is_dir().then_some(dir)
}
