#!/usr/bin/env bash
# Bulk TCP between pods on two nodes, by iperf3 on the testbed: Overlane, Overlane without putting segments
# together, and the kernel's vxlan device, in turn. See usage below.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export OVERLANE_TESTBED_PREFIX=ovi OVERLANE_RUN_DIR=${OVERLANE_PERF_RUN_DIR:-/run/overlane-perf}-tcp
# shellcheck source=scripts/lib/common.sh
. "$here/../scripts/lib/common.sh"
# shellcheck source=scripts/lib/addresses.sh
. "$here/../scripts/lib/addresses.sh"

usage() {
  cat <<'TEXT'
usage: perf/tcp.sh [options]

Gbit/s that arrive, retransmitted segments, and the CPU time of the whole machine for each Gbit, of
  overlane          the dataplane as it is by default, mode vxlan
  overlane-single   the same with --no-coalesce
  kernel            routes and a vxlan device, as flannel or Cilium in tunnel mode have them
Pods' veths have their default offloads; the underlay is like a cable (checksums and segments finished).

  --rounds N      rounds, each with all of them in turn (3)
  --seconds N     seconds of a run (5)
  --parallel N    TCP connections at the same time (1)
  --reverse       from the second node to the first
  -o text|json    how the result is printed (text)

Exit status: 0 measured, 1 something failed, 2 wrong arguments.
TEXT
}

MODE=vxlan ROUNDS=3 SECONDS_EACH=5 PARALLEL=1 REVERSE='' OUTPUT=text
PEERS=(overlane overlane-single kernel)

number() {
  if ! [[ $2 =~ ^[0-9]{1,4}$ ]] || [ "$2" -lt 1 ]; then usage_error "$1 $2: a number from 1 to 9999 is wanted"; fi
}
while [ $# -gt 0 ]; do
  case $1 in
    --reverse) REVERSE=-R; shift; continue ;;
    -h | --help) usage; exit 0 ;;
    --rounds | --seconds | --parallel | -o) [ $# -ge 2 ] || usage_error "$1 wants a value" ;;
    *) usage_error "unknown option '$1'; perf/tcp.sh --help lists them" ;;
  esac
  case $1 in
    --rounds) number "$1" "$2"; ROUNDS=$2 ;;
    --seconds) number "$1" "$2"; SECONDS_EACH=$2 ;;
    --parallel) number "$1" "$2"; PARALLEL=$2 ;;
    -o) [ "$2" = text ] || [ "$2" = json ] || usage_error "-o $2: text or json is wanted"; OUTPUT=$2 ;;
  esac
  shift 2
done
need_root perf/tcp.sh
for tool in iperf3 jq ip ethtool; do
  command -v "$tool" > /dev/null || die "'$tool' is not installed: run scripts/install-deps.sh"
done
exec 7> /run/overlane-perf.lock
flock -w 600 7 || die "other measurements have been at work for 10 minutes (/run/overlane-perf.lock)"

RESULTS=$(mktemp /tmp/overlane-tcp.XXXXXX)
testbed() { "$here/../scripts/testbed.sh" "$@" > /dev/null 2> "$RESULTS.said" || { cat "$RESULTS.said" >&2; die "the testbed failed: $*"; }; }
cleanup() {
  trap - EXIT
  "$here/../scripts/testbed.sh" down > /dev/null 2>&1 || true
  rm -f "$RESULTS" "$RESULTS".*
}
trap cleanup EXIT
trap 'exit 130' INT TERM

at() { ip netns exec "$(namespace "$1")" "${@:2}"; }

# kernel_node NODE OTHER: routes pods' packets into a vxlan device.
kernel_node() {
  local node=$1 other=$2 mtu=1450
  at "$node" sysctl -qw net.ipv4.ip_forward=1
  ip -n "$(namespace "$node")" link set pod1 mtu $mtu
  ip -n "$(namespace "$node-pod1")" link set eth0 mtu $mtu
  at "$node" ip address add 169.254.1.1/32 dev pod1
  at "$node" ip route add "$(pod_ip4 "$node" 1)/32" dev pod1
  at "$node" ip link add vx0 mtu $mtu address "02:00:00:00:05:0$(node_number "$node")" type vxlan id 1 dstport 4789 \
    local "$(node_ip4 "$node")" remote "$(node_ip4 "$other")" noudpcsum nolearning dev eth0
  at "$node" ip link set vx0 up
  at "$node" ip neigh add 169.254.2.1 lladdr "02:00:00:00:05:0$(node_number "$other")" dev vx0 nud permanent
  at "$node" ip route add "$(pod_net4 "$other").0/24" via 169.254.2.1 dev vx0 onlink
}

bring_up() {
  testbed down
  case $1 in
    overlane) testbed up --mode vxlan --pods 1 ;;
    overlane-single) testbed up --mode vxlan --pods 1 --no-coalesce ;;
    kernel)
      testbed up --mode vxlan --pods 1 --no-processes
      kernel_node a b
      kernel_node b a
      ;;
  esac
}

# busy_s: CPU time of the machine so far, idle time aside, seconds.
busy_s() { awk -v hz="$(getconf CLK_TCK)" '/^cpu / { print ($2 + $3 + $4 + $7 + $8) / hz }' /proc/stat; }
listens() { at b-pod1 ss -ltnH 'sport = :5201' | grep -q .; }

# measure PEER: one run, as a line of JSON.
measure() {
  local server before after
  at b-pod1 iperf3 -s -1 > /dev/null 2>&1 &
  server=$!
  wait_until 5 listens || die "iperf3 does not listen in pod 1 of node b"
  before=$(busy_s)
  at a-pod1 iperf3 -J -c "$(pod_ip4 b 1)" -t "$SECONDS_EACH" -P "$PARALLEL" $REVERSE > "$RESULTS.json" ||
    die "iperf3 failed with $1: $(jq -r '.error // "it says nothing"' "$RESULTS.json")"
  after=$(busy_s)
  wait "$server" || true
  jq -c --arg peer "$1" --argjson busy "$(awk -v a="$after" -v b="$before" 'BEGIN { print a - b }')" '
    (.end.sum_received.bytes * 8 / 1e9) as $gbit |
    {peer: $peer, gbit_s: (.end.sum_received.bits_per_second / 1e9), retransmits: .end.sum_sent.retransmits,
     cpu_s_per_gbit: (if $gbit > 0 then $busy / $gbit else null end)}' "$RESULTS.json" >> "$RESULTS"
}

for ((round = 1; round <= ROUNDS; round++)); do
  for peer in "${PEERS[@]}"; do
    [ ! -t 2 ] || printf '\rround %s of %s: %-16s' "$round" "$ROUNDS" "$peer" >&2
    bring_up "$peer"
    measure "$peer"
  done
done
[ ! -t 2 ] || printf '\r%40s\r' '' >&2

# Medians, with the range; ratios are taken within a round.
SUMMARY='
  def median: sort | .[(length - 1) / 2 | floor];
  def spread: {median: median, min: min, max: max};
  [inputs] as $all |
  ($all | map(select(.peer == "kernel") | .gbit_s)) as $kernel |
  {about: {kernel: $release, load_average: ($load | tonumber), rounds: $rounds, seconds: $seconds, parallel: $parallel, reverse: $reverse},
   kind: "tcp",
   result: [$all | group_by(.peer)[] | {peer: .[0].peer, gbit_s: (map(.gbit_s) | spread),
     retransmits: (map(.retransmits) | spread), cpu_s_per_gbit: (map(.cpu_s_per_gbit) | spread),
     to_kernel: ([map(.gbit_s), $kernel] | transpose | map(.[0] / .[1]) | spread)}]}'
jq -n --arg release "$(uname -r)" --arg load "$(cut -d' ' -f1 /proc/loadavg)" --argjson rounds "$ROUNDS" \
  --argjson seconds "$SECONDS_EACH" --argjson parallel "$PARALLEL" --argjson reverse "$([ -n "$REVERSE" ] && echo true || echo false)" \
  "$SUMMARY" "$RESULTS" > "$RESULTS.summary"
if [ "$OUTPUT" = json ]; then
  cat "$RESULTS.summary"
else
  {
    printf 'PEER\tGBIT/S\t\tRETRANSMITS\tCPU S/GBIT\tTO KERNEL\n'
    jq -r 'def r(d): . * d | round / d; .result[] |
      [.peer, (.gbit_s.median | r(100)), "(\(.gbit_s.min | r(100))-\(.gbit_s.max | r(100)))", .retransmits.median,
       (.cpu_s_per_gbit.median | r(100)), "\(.to_kernel.median | r(100)) (\(.to_kernel.min | r(100))-\(.to_kernel.max | r(100)))"] | @tsv' \
      "$RESULTS.summary"
  } | column -t -s $'\t'
fi
