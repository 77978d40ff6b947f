#!/usr/bin/env bash
# Install what Overlane needs on Debian 12 or later: only packages that are missing, nothing started.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib/common.sh
. "$here/lib/common.sh"

RUST_WANTED=1.95

usage() {
  cat <<'TEXT'
usage: install-deps.sh [--test] [--peers] [--check]
  --test    also what the tests use (Open vSwitch, scapy, valgrind, strace, shellcheck, ...)
  --peers   also what `overlane-perf compare` compares with (DPDK, Open vSwitch with it, iptables, ...)
  --check   install nothing; list what is missing and fail if anything is
TEXT
}

BUILD=(gcc clang llvm libclang-dev libelf-dev libpcap-dev zlib1g-dev libc6-dev
  linux-libc-dev make m4 pkg-config git)
RUN=(iproute2 ethtool iputils-ping procps util-linux jq tshark iperf3 socat curl python3
  dnsmasq-base bind9-dnsutils)
TEST=(bpftool tcpdump iputils-arping ndisc6 netcat-openbsd openvswitch-switch nftables python3-scapy
  valgrind strace shellcheck)
# valgrind: the page of overlane-perf report shows instructions.
PEERS=(dpdk-dev openvswitch-switch openvswitch-switch-dpdk iptables ipvsadm nftables python3-scapy jq
  valgrind)
# Of these packages, services that nobody wants to be started, now or with the machine.
SERVICES=(openvswitch-switch ipvsadm dpdk)

# DPDK's drivers have its version in their name.
dpdk_drivers() {
  local kind
  for kind in librte-net-af-xdp librte-mempool-ring; do
    apt-cache pkgnames "$kind" | grep -E "^${kind}[0-9]" | sort -V | tail -n 1
  done
}

missing() {
  local package
  for package in "$@"; do
    dpkg-query -W -f '${db:Status-Status}\n' "$package" 2> /dev/null | grep -qx installed || printf '%s\n' "$package"
  done
}

LISTS_ARE_FRESH=no
refresh_lists() {
  [ "$LISTS_ARE_FRESH" = no ] || return 0
  LISTS_ARE_FRESH=yes
  say "refreshing the package lists"
  apt-get update -qq || die "apt-get update failed: is the network reachable, and are the sources in /etc/apt right?"
}

# The package lists may be absent, or so old that they name versions that are gone: refresh them only if
# something cannot be found or fetched. What packages say while they are installed is shown on failure only.
install_packages() {
  local -x DEBIAN_FRONTEND=noninteractive
  local log
  if ! apt_install --dry-run "$@" > /dev/null 2>&1; then refresh_lists; fi
  log=$(mktemp /tmp/overlane-deps.XXXXXX)
  start_nothing
  if ! apt_install "$@" > "$log" 2>&1; then
    refresh_lists
    if ! apt_install "$@" > "$log" 2>&1; then
      tail -n 30 "$log" >&2
      die "apt-get could not install: $*; all that it said: $log"
    fi
  fi
  rm -f "$log"
  disable_services "$@"
}

apt_install() { apt-get install -y -qq --no-install-recommends "$@"; }

# start_nothing: as long as this script runs no package starts a service; Debian's own way to say so.
POLICY=/usr/sbin/policy-rc.d
start_nothing() {
  [ ! -e "$POLICY" ] || return 0
  trap 'rm -f "$POLICY"' EXIT
  printf '#!/bin/sh\nexit 101\n' > "$POLICY"
  chmod +x "$POLICY"
}

# disable_services PACKAGE...: of what was installed just now none is started with the machine.
disable_services() {
  local service package
  command -v systemctl > /dev/null || return 0
  for service in "${SERVICES[@]}"; do
    for package in "$@"; do
      # dpdk comes along with dpdk-dev.
      [ "${package%-dev}" != "$service" ] || systemctl disable --quiet "$service" > /dev/null 2>&1 || true
    done
  done
}

check_rust() {
  local version
  if ! find_cargo; then
    say "Rust $RUST_WANTED or later is needed, and there is no cargo on PATH or in ~/.cargo/bin."
    say "Debian's own is too old. Install it from https://rustup.rs:"
    say "    apt-get install -y curl && curl -sSf https://sh.rustup.rs | sh -s -- -y --profile default"
    say "    . ~/.cargo/env"
    die "no Rust toolchain"
  fi
  version=$(cargo --version | awk '{ print $2 }')
  if [ "$(printf '%s\n' "$RUST_WANTED" "$version" | sort -V | head -n 1)" != "$RUST_WANTED" ]; then
    die "cargo $version is too old, $RUST_WANTED is wanted: rustup update stable"
  fi
  printf '%s' "$version"
}

with_test=no with_peers=no only_check=no
for option in "$@"; do
  case $option in
    --test) with_test=yes ;;
    --peers) with_peers=yes ;;
    --check) only_check=yes ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
  esac
done

command -v dpkg-query > /dev/null || die "this is not a Debian system; install by hand: ${BUILD[*]} ${RUN[*]}, and Rust $RUST_WANTED"
wanted=("${BUILD[@]}" "${RUN[@]}")
[ "$with_test" = no ] || wanted+=("${TEST[@]}")
if [ "$with_peers" = yes ]; then
  wanted+=("${PEERS[@]}")
  if [ -z "$(dpdk_drivers)" ] && [ "$only_check" = no ]; then
    need_root "refreshing the package lists"
    refresh_lists
  fi
  mapfile -O "${#wanted[@]}" -t wanted < <(dpdk_drivers)
fi
mapfile -t wanted < <(printf '%s\n' "${wanted[@]}" | sort -u)
mapfile -t absent < <(missing "${wanted[@]}")
if [ ${#absent[@]} -gt 0 ]; then
  [ "$only_check" = no ] || die "not installed: ${absent[*]}"
  need_root "installing packages (${absent[*]})"
  say "installing ${#absent[@]} packages: ${absent[*]}"
  install_packages "${absent[@]}"
fi
rust=$(check_rust) || exit 1
say "all ${#wanted[@]} packages are there; cargo $rust"
