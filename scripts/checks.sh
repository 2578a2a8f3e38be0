# What a build needs, found out by trying it. Sourced by scripts/setup, after lib.sh.

# What is wrong, in words; and the Debian packages that mend it. `libclang` stands for the packages of the release's
# own version, which are known once apt has its lists.
problems=()
packages=()
# Whether something is wrong that no package mends.
beyond_packages=no

# problem TEXT [PACKAGE...]
problem() {
  problems+=("$1")
  shift
  if [[ $# -eq 0 ]]; then beyond_packages=yes; fi
  packages+=("$@")
}

# The line of a failed command's words that tells most.
reason() {
  grep --max-count=1 --ignore-case --extended-regexp 'error|fatal|cannot|not found|denied|read-only' "$trial/said" ||
    head --lines=1 "$trial/said"
}

# Runs everything below, for a folder of its own to try things in: sets `problems` and `packages`.
find_problems() {
  local c_is_good=no
  problems=()
  packages=()
  beyond_packages=no
  if ! trial=$(mkdir --parents "$CARGO_TARGET_DIR" && mktemp --directory "$CARGO_TARGET_DIR/setup.XXXXXX" 2>&1); then
    problem "cannot write to $CARGO_TARGET_DIR; set CARGO_TARGET_DIR to a folder where a build may lie"
    return
  fi
  trap 'rm --recursive --force "$trial"' EXIT
  check_room
  check_processor
  if check_c; then c_is_good=yes; fi
  check_cxx
  if ! has make; then problem "there is no make, which jemalloc is built with" make; fi
  # The other two are tried with it.
  if [[ $c_is_good == yes ]]; then
    check_libclang
  elif [[ -z $(libclang_of_bindgen) ]]; then
    problem "there is no libclang" libclang
  fi
  if check_rust "$c_is_good"; then check_crates; fi
  rm --recursive --force "$trial"
}

check_room() {
  local free
  # Later builds need little more than what is there.
  if [[ -n $(rocksdb_built) ]] || ! free=$(df --output=avail --block-size=1M "$CARGO_TARGET_DIR" 2>/dev/null); then
    return
  fi
  free=$(tail --lines=1 <<<"$free" | tr --delete ' ')
  if [[ $free =~ ^[0-9]+$ && $free -lt $room ]]; then
    problem "only $free MiB are free in $CARGO_TARGET_DIR, and a first build needs $room MiB; set CARGO_TARGET_DIR to a folder on another disk"
  fi
}

# .cargo/config.toml compiles for these; a program would die of SIGILL without them.
check_processor() {
  local flag
  if [[ $(uname --machine) != x86_64 || ! -r /proc/cpuinfo ]]; then return; fi
  for flag in sse4_2 pclmulqdq; do
    if ! grep --quiet --word-regexp "$flag" /proc/cpuinfo; then
      problem "this processor has no $flag (a virtual machine may hide it: give it the host's processor type)"
    fi
  done
}

# The packages of a compiler, unless the caller has chosen another one.
compiler_packages() {
  if [[ -z ${CC:-} && -z ${CXX:-} ]]; then echo "gcc g++ libc6-dev binutils"; fi
}

check_c() {
  local -a compiler
  read -ra compiler <<<"${CC:-cc}"
  if ! has "${compiler[0]}"; then
    problem "there is no C compiler: ${compiler[0]} is not there" $(compiler_packages)
    return 1
  fi
  printf '#include <stdio.h>\nint main(void) { return puts("") < 0; }\n' >"$trial/c.c"
  if ! "${compiler[@]}" -o "$trial/c" "$trial/c.c" >"$trial/said" 2>&1; then
    problem "${compiler[*]} cannot compile and link a line of C: $(reason)" $(compiler_packages)
    return 1
  fi
  if ! "$trial/c" >"$trial/said" 2>&1; then
    problem "what was compiled in $CARGO_TARGET_DIR cannot be run; is it mounted with noexec?"
    return 1
  fi
}

check_cxx() {
  local -a compiler
  read -ra compiler <<<"${CXX:-c++}"
  if ! has "${compiler[0]}"; then
    problem "there is no C++ compiler: ${compiler[0]} is not there" $(compiler_packages)
    return
  fi
  cat >"$trial/cxx.cc" <<'CXX'
#if (defined(__clang__) && __clang_major__ < 10) || (!defined(__clang__) && __GNUC__ < 11)
#error the compiler is too old: RocksDB needs GCC 11 or Clang 10 or newer
#endif
#include <concepts>
#include <cstdint>
#include <iostream>
#include <string>
template <std::integral T> std::string text(T number) { return std::to_string(number); }
int main() { std::cout << text(std::int64_t{20}) << std::endl; }
CXX
  if ! "${compiler[@]}" -std=c++20 -o "$trial/cxx" "$trial/cxx.cc" >"$trial/said" 2>&1; then
    if grep --quiet 'too old' "$trial/said"; then
      problem "${compiler[*]} is too old: RocksDB needs GCC 11 or Clang 10 or newer; set CC and CXX to such compilers"
    else
      problem "${compiler[*]} cannot compile and link a line of C++20: $(reason)" $(compiler_packages)
    fi
  fi
}

# The folders where bindgen's clang-sys 1.9 looks for libclang, one a line.
libclang_folders() {
  local prefix folder
  if [[ -n ${LIBCLANG_PATH:-} ]]; then
    if [[ -d $LIBCLANG_PATH ]]; then echo "$LIBCLANG_PATH"; else dirname "$LIBCLANG_PATH"; fi
    return
  fi
  if prefix=$("${LLVM_CONFIG_PATH:-llvm-config}" --prefix 2>/dev/null); then
    printf '%s\n' "$prefix"/{bin,lib,lib64}
  fi
  tr ':' '\n' <<<"${LD_LIBRARY_PATH:-}:${LIBRARY_PATH:-}"
  for folder in /usr/local/llvm*/lib* /usr/local/lib*/*/* /usr/local/lib*/* /usr/local/lib* \
    /usr/lib*/*/* /usr/lib*/* /usr/lib*; do
    if [[ -d $folder ]]; then echo "$folder"; fi
  done
}

# The libclang that bindgen will load: of all that are there, the first with the highest version in its name; nothing
# where there is none. It takes libraries of this machine's word size only, and never libclang-cpp.
libclang_of_bindgen() {
  local folder file name version class=02
  if [[ $(getconf LONG_BIT) == 32 ]]; then class=01; fi
  while read -r folder; do
    if [[ -z $folder ]]; then continue; fi
    for file in "$folder"/libclang.so "$folder"/libclang-*.so "$folder"/libclang.so.* "$folder"/libclang-*.so.*; do
      name=${file##*/}
      if [[ $name == *-cpp.* || ! -f $file ]]; then continue; fi
      if [[ -f ${LIBCLANG_PATH:-} && $name != "${LIBCLANG_PATH##*/}" ]]; then continue; fi
      if [[ $(od --address-radix=n --format=x1 --skip-bytes=4 --read-bytes=1 "$file") != *"$class" ]]; then continue; fi
      version=${name#libclang}
      version=${version#[-.]}
      version=${version#so}
      version=${version#.}
      printf '%s\t%s\n' "${version%%.so*}" "$file"
    done
  done < <(libclang_folders) | sort --stable --reverse --version-sort --key=1,1 | sed --quiet '1s/.*\t//p'
}

# Where bindgen sends libclang for headers, if there is a `clang`: its own search list.
clang_headers() {
  local clang=${CLANG_PATH:-clang}
  has "$clang" || return 0
  "$clang" -E -x c - -v </dev/null 2>&1 |
    sed --quiet '/^#include <...> search starts here:/,/^End of search list/ s/^ /-isystem\n/p'
}

check_libclang() {
  local library version status=0
  local -a compiler arguments
  read -ra compiler <<<"${CC:-cc}"
  library=$(libclang_of_bindgen)
  if [[ -z $library ]]; then
    if [[ -n ${LIBCLANG_PATH:-} ]]; then
      problem "there is no libclang in LIBCLANG_PATH, which is $LIBCLANG_PATH (libclang-cpp is another library)"
    else
      problem "there is no libclang (libclang-cpp is another library)" libclang
    fi
    return
  fi
  if ! "${compiler[@]}" -o "$trial/libclang-probe" scripts/libclang-probe.c -ldl >"$trial/said" 2>&1; then
    problem "scripts/libclang-probe.c cannot be compiled: $(reason)"
    return
  fi
  mapfile -t arguments < <(clang_headers)
  # bindgen takes these from the environment, too.
  version=$("$trial/libclang-probe" "$library" "${arguments[@]}" ${BINDGEN_EXTRA_CLANG_ARGS:-} 2>"$trial/said") ||
    status=$?
  case $status in
    0) libclang="libclang $version ($library)" ;;
    5) problem "libclang $version ($library) does not find the compiler's own headers: $(head --lines=1 "$trial/said")" \
      "libclang-common-${version%%.*}-dev" ;;
    *) problem "$library is no libclang that bindgen can use: $(head --lines=1 "$trial/said"); set LIBCLANG_PATH to the folder of another one" ;;
  esac
}

# check_rust C_IS_GOOD: whether cargo can be used.
check_rust() {
  local needed present
  needed=$(sed --quiet 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)
  if ! has cargo || ! has rustc; then
    problem "there is no Rust: please install Rust $needed or newer, https://rustup.rs"
    return 1
  fi
  if ! present=$(rustc --version 2>"$trial/said") || ! cargo --version >/dev/null 2>"$trial/said"; then
    problem "Rust does not work: $(reason)"
    return 1
  fi
  present=$(cut --delimiter=' ' --fields=2 <<<"$present")
  if [[ $(printf '%s\n' "$needed" "${present%%-*}" | sort --version-sort | head --lines=1) != "$needed" ]]; then
    problem "Rust $present is too old, $needed or newer is needed: please run 'rustup update stable'"
    return 1
  fi
  if [[ $1 == yes ]] && ! rustc --crate-name rust --out-dir "$trial" - <<<'fn main() {}' >"$trial/said" 2>&1; then
    # Where CC is another compiler, Rust links with cc all the same.
    problem "rustc cannot link a program: $(reason)" gcc libc6-dev binutils
  fi
}

# Whether all crates are there or can be downloaded.
check_crates() {
  local host
  host=$(rustc --version --verbose | sed --quiet 's/^host: //p')
  if cargo fetch --locked --offline --target "$host" >/dev/null 2>&1; then return; fi
  say "downloading the crates that the build needs"
  if ! cargo fetch --locked --target "$host" >"$trial/said" 2>&1; then
    # Cargo's last word is the cause.
    problem "cargo cannot download the crates: $(grep --invert-match '^$' "$trial/said" | tail --lines=1 | sed 's/^ *//'). \
It needs a network (or crates in a mirror), and to write to ${CARGO_HOME:-${HOME:-~}/.cargo}"
  fi
}
