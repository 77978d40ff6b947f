# shellcheck shell=bash disable=SC2034
# What all scripts share: where things are, how to speak, how to stop.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

# Colours only for a person.
if [ -t 2 ] && [ -z "${NO_COLOR:-}" ]; then
  BOLD=$'\e[1m' DIM=$'\e[2m' RED=$'\e[31m' GREEN=$'\e[32m' YELLOW=$'\e[33m' PLAIN=$'\e[0m'
else
  BOLD='' DIM='' RED='' GREEN='' YELLOW='' PLAIN=''
fi

say() { printf '%s\n' "$*" >&2; }
warn() { printf '%s%s%s\n' "$YELLOW" "$*" "$PLAIN" >&2; }

# die MESSAGE: say what was wrong and leave with 1. usage_error MESSAGE: the same with 2.
die() { printf '%serror:%s %s\n' "$RED" "$PLAIN" "$*" >&2; exit 1; }
usage_error() { printf '%serror:%s %s\n' "$RED" "$PLAIN" "$*" >&2; exit 2; }

need_root() { # need_root WHAT: WHAT makes namespaces, say
  [ "$(id -u)" = 0 ] || die "$1 needs root: sudo $0 ..."
}

# find_cargo: put cargo on PATH if it is where rustup puts it.
find_cargo() {
  local dir
  command -v cargo >/dev/null && return 0
  for dir in "${CARGO_HOME:-}/bin" "${HOME:-/root}/.cargo/bin" /root/.cargo/bin; do
    if [ -x "$dir/cargo" ]; then PATH=$dir:$PATH; export PATH; return 0; fi
  done
  return 1
}

# bin_dir: where the built programs are. OVERLANE_BIN overrides.
bin_dir() { printf '%s' "${OVERLANE_BIN:-${CARGO_TARGET_DIR:-$ROOT/target}/release}"; }

# program NAME: its path, or a message that says how to get it.
program() {
  local path
  path=$(bin_dir)/$1
  [ -x "$path" ] || { say "$path is not there: build with 'cargo build --release', or set OVERLANE_BIN"; return 1; }
  printf '%s' "$path"
}

# allowed_cpus: the CPUs that this process may use, one a line.
allowed_cpus() {
  local part
  awk '/^Cpus_allowed_list:/ { print $2 }' /proc/self/status | tr ',' '\n' | while read -r part; do
    seq "${part%-*}" "${part#*-}"
  done
}

# wait_until SECONDS COMMAND...: try every 0.1 s until COMMAND succeeds.
wait_until() {
  local deadline=$((${EPOCHREALTIME/./} + $1 * 1000000))
  shift
  until "$@"; do
    [ "${EPOCHREALTIME/./}" -lt "$deadline" ] || return 1
    sleep 0.1
  done
}
