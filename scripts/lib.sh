# What the scripts here share. Sourced, never run: it goes to the project's folder, sets up the compilers and the
# target folder, and gives a few functions.

set -euo pipefail

script=$(basename "$0")
# A relative CARGO_TARGET_DIR is meant from where the caller stands, so it is made absolute before we leave.
if [[ -n ${CARGO_TARGET_DIR:-} && $CARGO_TARGET_DIR != /* ]]; then
  CARGO_TARGET_DIR=$PWD/$CARGO_TARGET_DIR
fi
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$root/target}

say() { printf '%s: %s\n' "$script" "$*"; }

# A failure, in words; the caller decides whether to go on.
complain() { printf '%s: %s\n' "$script" "$*" >&2; }

# Ends with 2: wrong use, or something is missing.
give_up() {
  complain "$@"
  exit 2
}

heading() { printf '\n== %s\n' "$*"; }

has() { command -v "$1" >/dev/null; }

# RocksDB is most of a first build; ccache keeps its objects over `cargo clean` and from one target folder to the next.
use_ccache() {
  if has ccache && [[ -z ${CC:-} && -z ${CXX:-} ]]; then
    export CC="ccache gcc" CXX="ccache g++"
  fi
}

# Whether bindgen, which writes the declarations of RocksDB, will find libclang.
has_libclang() {
  [[ -n ${LIBCLANG_PATH:-} ]] && return 0
  has ldconfig && ldconfig -p | grep --quiet 'libclang[-.].*so' && return 0
  compgen -G '/usr/lib/llvm-*/lib/libclang*.so*' >/dev/null
}

# The system packages that are not there yet, one a line.
missing_packages() {
  has gcc || echo gcc
  has g++ || echo g++
  has make || echo make
  has_libclang || echo libclang-dev
}

# Says what a first build costs, where this is one.
announce_build() {
  if compgen -G "$CARGO_TARGET_DIR/release/build/librocksdb-sys-*/out/librocksdb.a" >/dev/null; then
    return
  fi
  say "the first build compiles RocksDB: about 15 minutes on 2 cores (about 1 minute where ccache has it from before)."
  if ! has ccache; then
    say "ccache is not installed; with it ('scripts/setup --ccache') only the very first build takes this long."
  fi
}

# Sees to it that a build can succeed.
prepare() {
  "$root/scripts/setup" --quiet
  use_ccache
}
