#!/usr/bin/env bash
# Installs the Debian packages named as arguments that are missing, and checks the Rust toolchain.
set -euo pipefail

want_rust=1.95
if ! command -v cargo >/dev/null; then
    echo "setup: cargo is missing: install Rust $want_rust or later with rustup (https://rustup.rs)" >&2
    exit 1
fi
have=$(rustc --version | cut -d' ' -f2)
if [ "$(printf '%s\n%s\n' "$want_rust" "$have" | sort -V | head -n1)" != "$want_rust" ]; then
    echo "setup: rustc $have is too old: 'rustup update stable' gives $want_rust or later" >&2
    exit 1
fi

missing=()
for package in "$@"; do
    status=$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null || true)
    [ "$status" = "install ok installed" ] || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" != 0 ]; then
    echo "setup: missing packages: run 'sudo apt-get install ${missing[*]}'" >&2
    exit 1
fi
echo "setup: installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# Servers that the tests start themselves must not be started as services by their packages.
printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d.millrace
chmod +x /usr/sbin/policy-rc.d.millrace
[ -e /usr/sbin/policy-rc.d ] || { mv /usr/sbin/policy-rc.d.millrace /usr/sbin/policy-rc.d; made=1; }
trap 'rm -f /usr/sbin/policy-rc.d.millrace; [ -z "${made:-}" ] || rm -f /usr/sbin/policy-rc.d' EXIT
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
