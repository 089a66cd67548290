#!/usr/bin/env bash
# Builds kubelab once for each content of this folder, and prints where it is. Minutes the first time, then nothing.
# KUBELAB_CACHE: the folder for what is built (~/.cache/kubelab); GO: the go command.
set -euo pipefail
cd "$(dirname "$0")"

find_go() {
    local candidate
    for candidate in "${GO:-}" "$(command -v go || true)" /usr/local/go/bin/go /usr/lib/go-1.26/bin/go; do
        if [ -n "$candidate" ] && [ -x "$candidate" ]; then echo "$candidate"; return; fi
    done
    echo "kubelab: no go command; the Kubernetes scenarios need Go 1.26 or later:" \
         "unpack https://go.dev/dl/go1.26.0.linux-amd64.tar.gz below /usr/local, or set GO to a go command" >&2
    exit 1
}

go=$(find_go)
# What go.mod asks for is what this folder is built with: a toolchain that go fetches by itself would come unnoticed.
export GOTOOLCHAIN=local CGO_ENABLED=0
asked=$(sed -n 's/^go //p' go.mod)
have=$("$go" env GOVERSION)
if [ "$(printf '%s\n' "$asked" "${have#go}" | sort -V | head -n 1)" != "$asked" ]; then
    echo "kubelab: $go is $have, expected go$asked or later: unpack https://go.dev/dl/go$asked.linux-amd64.tar.gz" \
         "below /usr/local, or set GO to a later go command" >&2
    exit 1
fi

version=$(sed -n 's#^\tk8s.io/kubernetes ##p' go.mod)
key=$({ echo "$have $("$go" env GOARCH)"; cat go.mod go.sum main.go build.sh; } | sha256sum | cut -c1-16)
cache=${KUBELAB_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/kubelab}
binary=$cache/kubelab-$key
mkdir -p "$cache"
exec {lock}>"$cache/lock"
flock "$lock"
if [ ! -x "$binary" ]; then
    echo "kubelab: building a Kubernetes control plane $version for the scenarios; some minutes, this once" >&2
    # What go keeps between builds is large and of no further use: in memory, where that is.
    work=$(mktemp -d -p "$([ -w /dev/shm ] && echo /dev/shm || echo "$cache")" kubelab.XXXXXX)
    trap 'rm -rf "$work"' EXIT
    # The API server judges itself and kubectl by these.
    numbers=${version#v}
    major=${numbers%%.*} minor=${numbers#*.} minor=${minor%%.*}
    at=k8s.io/component-base/version
    symbols="-s -w -X $at.gitVersion=$version -X $at.gitMajor=$major -X $at.gitMinor=$minor"
    symbols+=" -X k8s.io/client-go/pkg/version.gitVersion=$version"
    GOCACHE=$work GOGC=400 "$go" build -buildvcs=false -mod=readonly -trimpath -gcflags=all=-dwarf=false \
        -ldflags "$symbols" -o "$binary.part" . >&2
    # Former ones are of no use to anybody who has this content; they are 150 MB each.
    find "$cache" -maxdepth 1 -name 'kubelab-*' ! -name "$(basename "$binary").part" -mtime +7 -delete
    mv "$binary.part" "$binary"
fi
echo "$binary"
