#!/bin/sh
# The files of the image: image.sh BINARY FOLDER puts the binary, nft, which marks connections for the kernel port, and the
# shared libraries that both load, nothing else, where the loader looks for them.
set -eu
binary=$1
root=$2
nft=$(PATH=$PATH:/usr/sbin:/sbin command -v nft) || {
    echo "image: there is no nft: install nftables" >&2
    exit 1
}
put() {
    mkdir -p "$root$(dirname "$2")"
    cp -L "$1" "$root$2"
}
put "$binary" /usr/bin/millrace
put "$nft" /usr/bin/nft
for program in "$binary" "$nft"; do
    libraries=$(ldd "$program")
    case $libraries in
    *"not found"*)
        echo "image: $program lacks a library: $libraries" >&2
        exit 1
        ;;
    esac
    for library in $(echo "$libraries" | grep -o '/[^ ]*'); do
        put "$library" "$library"
    done
done
