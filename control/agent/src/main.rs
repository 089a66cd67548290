//! The command `millrace`.

use std::process::ExitCode;

use tikv_jemallocator::Jemalloc;

/// Tables of a large cluster are made anew at each change, which leaves glibc's allocator with twice of what is used.
/// The packet path allocates nothing.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    agent::cli::main()
}
