#!/usr/bin/env bash
# Runs fuzz targets: run.sh FOLDER TARGET…, each for FUZZ_SECONDS. What is built, new inputs and crashes go below FOLDER.
set -euo pipefail
folder=$(mkdir -p "$1" && cd "$1" && pwd)
shift
here=$(cd "$(dirname "$0")" && pwd)
# Coverage for libFuzzer by flags that a stable compiler takes; with --target, so that build scripts go without.
host=$(rustc -vV | sed -n 's/^host: //p')
export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table"
export CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS=true CARGO_TARGET_DIR="$folder"
cargo build --locked --release --target "$host" --manifest-path "$here/Cargo.toml" --features engine
failed=()
for target in "$@"; do
    mkdir -p "$folder/corpus/$target" "$folder/crashes/$target"
    seeds=("$here/corpus/$target")
    [ "$target" = manifests ] && seeds+=("$here/../manifests")
    [ "$target" = configuration ] && seeds+=("$here/../../deploy/gateway")
    echo "== $target: ${FUZZ_SECONDS:-60} s"
    MILLRACE_FUZZ_TARGET=$target "$folder/$host/release/millrace-fuzz" -max_total_time="${FUZZ_SECONDS:-60}" \
        -timeout=10 -rss_limit_mb=2048 -max_len=4096 -len_control=10 -print_final_stats=1 -verbosity=1 \
        -artifact_prefix="$folder/crashes/$target/" "$folder/corpus/$target" "${seeds[@]}" 2>"$folder/$target.log" ||
        failed+=("$target")
    grep -E '^(stat::(number_of_executed_units|average_exec_per_sec|peak_rss_mb)|SUMMARY|.*panicked)|DONE' "$folder/$target.log" || true
done
[ ${#failed[@]} = 0 ] && exit
for target in "${failed[@]}"; do
    echo "fuzz: $target failed: see $folder/$target.log; again by" \
        "MILLRACE_FUZZ_TARGET=$target $folder/$host/release/millrace-fuzz $folder/crashes/$target/…" >&2
done
exit 1
