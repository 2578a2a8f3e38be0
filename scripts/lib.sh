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

# sudo asks for a password only where somebody sits at the terminal.
as_root() {
  if [[ $(id --user) -eq 0 ]]; then
    "$@"
  elif [[ -t 0 || -t 2 ]]; then
    sudo "$@"
  else
    sudo --non-interactive "$@"
  fi
}

update_package_lists() {
  as_root apt-get update --quiet --quiet ||
    complain "apt-get update failed; trying with the package lists that are there"
}

# Debian packages. A line for each file that is unpacked tells nobody anything; what goes wrong is on stderr.
install_packages() {
  as_root env DEBIAN_FRONTEND=noninteractive \
    apt-get install --yes --quiet --quiet --no-install-recommends --option Dpkg::Use-Pty=0 "$@" >/dev/null
}

# install_program PROGRAM PACKAGE: installs the package if the program is not there.
install_program() {
  if has "$1"; then return; fi
  say "installing $2"
  has apt-get || return 1
  update_package_lists
  install_packages "$2" && has "$1"
}

# RocksDB is most of a first build; ccache keeps its objects over `cargo clean` and from one target folder to the next.
# By links in PATH, not by CC and CXX: with other values of these a later `cargo build` by hand would compile it again.
use_ccache() {
  local links=$CARGO_TARGET_DIR/ccache name
  if ! has ccache || [[ -n ${CC:-} || -n ${CXX:-} ]]; then return; fi
  mkdir --parents "$links"
  for name in cc c++ gcc g++; do
    ln --symbolic --force "$(command -v ccache)" "$links/$name"
  done
  if ! "$links/c++" -x c++ -c -o "$links/nothing.o" /dev/null 2>/dev/null; then
    say "ccache does not work here (see 'ccache --show-stats'): doing without it"
    rm --recursive --force "$links"
    return
  fi
  export PATH=$links:$PATH
}

# A compiler of eight of RocksDB's sources takes up to 1,050 MiB. With many processors and little memory the system would
# kill some.
fit_jobs_to_memory() {
  local available limit jobs
  if [[ -n ${CARGO_BUILD_JOBS:-} || ! -r /proc/meminfo ]]; then return; fi
  available=$(awk '/^MemAvailable:|^SwapFree:/ { sum += $2 } END { print int(sum / 1024) }' /proc/meminfo)
  limit=$(cat /sys/fs/cgroup/memory.max 2>/dev/null || true)
  if [[ $limit =~ ^[0-9]+$ && $((limit / 1048576)) -lt $available ]]; then
    available=$((limit / 1048576))
  fi
  jobs=$((available / 1100))
  if [[ $jobs -lt $(nproc) ]]; then
    export CARGO_BUILD_JOBS=$((jobs > 0 ? jobs : 1))
    say "$available MiB of memory are free: compiling $CARGO_BUILD_JOBS at a time (CARGO_BUILD_JOBS sets another number)"
  fi
}

# The compiled RocksDB, if there is one.
rocksdb_built() {
  compgen -G "$CARGO_TARGET_DIR/release/build/librocksdb-sys-*/out/librocksdb.a" || true
}

# Says what a first build costs, where this is one.
announce_build() {
  if [[ -n $(rocksdb_built) ]]; then return; fi
  say "the first build compiles RocksDB: about 8 minutes on 2 cores (about 1 minute where ccache has it from before)."
  if ! has ccache; then
    say "ccache is not installed; with it ('scripts/setup --ccache') only the very first build takes this long."
  fi
}

# Sees to it that a build can succeed; the arguments are for scripts/setup.
prepare() {
  "$root/scripts/setup" --quiet "$@"
  use_ccache
  fit_jobs_to_memory
}
