#!/usr/bin/env bash
# Builds Helm once for each content of this folder, and prints where it is: the upstream program, of the version that
# go.mod names. A minute or two the first time, then nothing. Beside kubelab, of which it is no part: that is built anew
# when its own folder changes.
# KUBELAB_CACHE: the folder for what is built (~/.cache/kubelab); GO: the go command.
set -euo pipefail
cd "$(dirname "$0")"

go=${GO:-}
for candidate in "$(command -v go || true)" /usr/local/go/bin/go /usr/lib/go-1.26/bin/go; do
    [ -n "$go" ] || [ ! -x "$candidate" ] || go=$candidate
done
if [ -z "$go" ]; then
    echo "helm: no go command; the scenarios of deploy/ need Go 1.26 or later:" \
         "unpack https://go.dev/dl/go1.26.0.linux-amd64.tar.gz below /usr/local, or set GO to a go command" >&2
    exit 1
fi
export GOTOOLCHAIN=local CGO_ENABLED=0
have=$("$go" env GOVERSION)
package=$(sed -n 's/^tool //p' go.mod)
version=$(sed -n 's#^\thelm.sh/helm/v4 \([^ ]*\).*#\1#p' go.mod)
key=$({ echo "$have $("$go" env GOARCH)"; cat go.mod go.sum build.sh; } | sha256sum | cut -c1-16)
cache=${KUBELAB_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/kubelab}
binary=$cache/helm-$key
mkdir -p "$cache"
exec {lock}>"$cache/helm.lock"
flock "$lock"
if [ ! -x "$binary" ]; then
    echo "helm: building Helm $version for the scenarios; a minute or two, this once" >&2
    # What go keeps between builds is large and of no further use: in memory, where that is.
    work=$(mktemp -d -p "$([ -w /dev/shm ] && echo /dev/shm || echo "$cache")" helm.XXXXXX)
    trap 'rm -rf "$work"' EXIT
    GOCACHE=$work GOGC=400 "$go" build -buildvcs=false -mod=readonly -trimpath -gcflags=all=-dwarf=false \
        -ldflags "-s -w -X helm.sh/helm/v4/internal/version.version=$version" -o "$binary.part" "$package" >&2
    find "$cache" -maxdepth 1 -name 'helm-*' ! -name "$(basename "$binary").part" -mtime +7 -delete
    mv "$binary.part" "$binary"
fi
echo "$binary"
