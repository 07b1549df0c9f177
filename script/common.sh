# SPDX-License-Identifier: MPL-2.0
# shellcheck shell=bash
# Shared by the scripts of this folder: where things are, and how to speak. To be sourced.

set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# Everything that is large and does not belong to one clone.
# shellcheck disable=SC2034
cache=${XDG_CACHE_HOME:-$HOME/.cache}/gst-plugin-dit
# tch 0.24 is written for exactly this version.
# shellcheck disable=SC2034
torch_version=2.11.0

say() { printf '==> %s\n' "$*"; }
warn() { printf 'warning: %s\n' "$*" >&2; }
die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }

# rustup's folder is missing from PATH in non-login shells.
if ! have cargo && [[ -x $HOME/.cargo/bin/cargo ]]; then
    export PATH="$HOME/.cargo/bin:$PATH"
fi

# Under CI every run has a fresh clone: keep what cargo built of the dependencies (the C++ half of
# torch-sys alone is minutes) outside it. Our own crate is rebuilt, since its files are newer.
use_ci_target_dir() {
    [[ ${CI:-} == true && -z ${CARGO_TARGET_DIR:-} ]] || return 0
    local key
    key=$({
        cat "$root/Cargo.lock" "$root/.cargo/config.toml"
        rustc -V
        echo "$torch_version"
    } | sha256sum | cut -c1-16)
    export CARGO_TARGET_DIR="$cache/target-$key"
    mkdir -p "$CARGO_TARGET_DIR"
    touch "$CARGO_TARGET_DIR"
    find "$cache" -maxdepth 1 -type d -name 'target-*' -mtime +7 -exec rm -rf {} +
    say "CI: building in $CARGO_TARGET_DIR"
}

# Cargo's target folder, wherever the user's own settings put it.
target_dir() {
    cargo metadata --format-version 1 --no-deps --offline --manifest-path "$root/Cargo.toml" |
        sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p'
}

# A folder that holds the built plugin and nothing else, for GST_PLUGIN_PATH: GStreamer searches
# folders deeply, and target/release has dozens of other shared objects (Rust's macros) below it.
plugin_folder() {
    local target
    target=$(target_dir)
    mkdir -p "$target/gstreamer-1.0"
    ln -sf ../release/libgstdit.so "$target/gstreamer-1.0/libgstdit.so"
    echo "$target/gstreamer-1.0"
}
