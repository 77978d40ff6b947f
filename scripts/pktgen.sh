#!/usr/bin/env bash
# The kernel's packet generator in a pod of the testbed, through the dataplane. See usage below.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib/common.sh
. "$here/lib/common.sh"
# shellcheck source=scripts/lib/addresses.sh
. "$here/lib/addresses.sh"

usage() {
  cat <<'TEXT'
usage: pktgen.sh [options]      the testbed must be up: testbed.sh up
  --from NAME       pod that sends (a-pod1)
  --to NAME         pod that receives, and whose counters are read (b-pod1)
  --address ADDR    send there, and not to the pod's own address: to a service, say
  --family 4|6      of the packets (4)
  --rate PPS|flat   packets a second (flat: as many as possible)
  --flows N         source ports, in random order (1)
  --size BYTES      frames on the wire, check sequence included (64; of IPv6 at least 82)
  --seconds N       how long (5)
  --cpu N           CPU of the generator (0)
  -o table|json     how to write the result

Sends UDP to port 9. Exit status: 0 packets arrived, 1 none did or something failed, 2 wrong
arguments, 3 this kernel has no pktgen: overlane-perf generate needs none.
OVERLANE_TESTBED_PREFIX: prefix of the testbed's namespaces (ovl).
TEXT
}

FROM=a-pod1 TO=b-pod1 ADDRESS='' FAMILY=4 RATE=flat FLOWS=1 SIZE=64 LENGTH=5 CPU=0 OUTPUT=table
PORTS_FROM=1024
LOADED=no STARTER=''

number() { # number OPTION VALUE LOW HIGH
  if ! [[ $2 =~ ^[0-9]{1,9}$ ]] || [ "$2" -lt "$3" ] || [ "$2" -gt "$4" ]; then
    usage_error "$1 $2: a number from $3 to $4 is wanted"
  fi
}

parse_options() {
  while [ $# -gt 0 ]; do
    case $1 in
      -h | --help) usage; exit 0 ;;
      --from | --to | --address | --family | --rate | --flows | --size | --seconds | --cpu | -o | --output)
        [ $# -ge 2 ] || usage_error "$1 wants a value" ;;
      *) usage_error "unknown option '$1'; pktgen.sh --help lists them" ;;
    esac
    case $1 in
      --from) FROM=$2 ;;
      --to) TO=$2 ;;
      --address) ADDRESS=$2 ;;
      --family) [[ $2 =~ ^[46]$ ]] || usage_error "$1 $2: 4 or 6 is wanted"; FAMILY=$2 ;;
      --rate) [ "$2" = flat ] || number "$1" "$2" 1 100000000; RATE=$2 ;;
      --flows) number "$1" "$2" 1 64511; FLOWS=$2 ;;
      --size) number "$1" "$2" 64 1518; SIZE=$2 ;;
      --seconds) number "$1" "$2" 1 86400; LENGTH=$2 ;;
      --cpu) number "$1" "$2" 0 8191; CPU=$2 ;;
      -o | --output) [[ $2 =~ ^(table|json)$ ]] || usage_error "$1 $2: table or json is wanted"; OUTPUT=$2 ;;
    esac
    shift 2
  done
}

at() { local name=$1; shift; ip netns exec "$(namespace "$name")" "$@"; }

check_pod() {
  [ -e "/run/netns/$(namespace "$1")" ] || die "there is no namespace $(namespace "$1"): is the testbed up? scripts/testbed.sh up"
}

# The module, if it is not there yet; taken away again at the end.
load_pktgen() {
  [ ! -d /proc/net/pktgen ] || return 0
  if modprobe pktgen 2> /dev/null && [ -d /proc/net/pktgen ]; then LOADED=yes; return 0; fi
  say "kernel $(uname -r) has no pktgen (CONFIG_NET_PKTGEN): use overlane-perf generate"
  exit 3
}

# Each network namespace has generators of its own, and sees them by /proc/self/net.
tell() { # tell FILE COMMAND: of the sending pod
  at "$FROM" sh -c "echo '$2' > /proc/self/net/pktgen/$1" ||
    die "pktgen refuses '$2': $(at "$FROM" sh -c "tail -n 1 /proc/self/net/pktgen/$1" 2> /dev/null)"
}

clean_up() {
  trap - EXIT INT TERM
  if [ -n "$STARTER" ]; then
    at "$FROM" sh -c 'echo stop > /proc/self/net/pktgen/pgctrl' 2> /dev/null || true
    wait "$STARTER" 2> /dev/null || true
  fi
  at "$FROM" sh -c "echo rem_device_all > /proc/self/net/pktgen/kpktgend_$CPU" 2> /dev/null || true
  if [ $LOADED = yes ]; then modprobe -r pktgen 2> /dev/null || true; fi
}

address_of() { # address_of NAME: its pod's own, of the family
  at "$1" ip -"$FAMILY" -o addr show dev eth0 scope global | awk '{ sub(/\/.*/, "", $4); print $4; exit }'
}

# The MAC address of the pods' gateway: the dataplane tells it to who asks.
gateway_mac() {
  local gateway=169.254.1.1 mac
  [ "$FAMILY" = 4 ] || gateway=fe80::1
  at "$FROM" ping -"$FAMILY" -c 1 -W 2 "$1" > /dev/null 2>&1 || true
  mac=$(at "$FROM" ip neigh show "$gateway" dev eth0 | awk '{ for (i = 1; i < NF; i++) if ($i == "lladdr") print $(i + 1) }')
  [ -n "$mac" ] || die "pod $FROM does not know its gateway $gateway: does the dataplane run? scripts/testbed.sh status"
  printf '%s' "$mac"
}

set_up() { # set_up SOURCE DESTINATION MAC
  local source=src_min destination=dst device=eth0
  [ "$FAMILY" = 4 ] || source=src6 destination=dst6
  [ -e "/proc/self/net/pktgen" ] || die "pktgen is gone"
  at "$FROM" test -e "/proc/self/net/pktgen/kpktgend_$CPU" || die "there is no CPU $CPU"
  tell "kpktgend_$CPU" rem_device_all
  tell "kpktgend_$CPU" "add_device $device"
  tell $device 'count 0'
  tell $device "pkt_size $((SIZE - 4))"
  tell $device "$source $1"
  [ "$FAMILY" = 6 ] || tell $device "src_max $1"
  tell $device "$destination $2"
  tell $device "dst_mac $3"
  tell $device "udp_src_min $PORTS_FROM"
  tell $device "udp_src_max $((PORTS_FROM + FLOWS))"
  tell $device 'udp_dst_min 9'
  tell $device 'udp_dst_max 9'
  [ "$FLOWS" = 1 ] || tell $device 'flag UDPSRC_RND'
  tell $device 'flag UDPCSUM'
  if [ "$RATE" != flat ]; then tell $device "ratep $RATE"; fi
}

# frames NAME: received at its eth0. datagrams NAME: whole ones that UDP was given, with or
# without somebody who wants them; wrong NAME: those with a wrong checksum.
frames() { at "$1" ip -s -j link show dev eth0 | jq '.[0].stats64.rx.packets'; }
udp() { # udp NAME FIELD...
  local name=$1 suffix=Udp
  shift
  [ "$FAMILY" = 4 ] || suffix=Udp6
  # shellcheck disable=SC2046
  at "$name" nstat -asz $(printf "$suffix%s " "$@") | awk '/^Udp/ { sum += $2 } END { print sum + 0 }'
}
datagrams() { udp "$1" InDatagrams NoPorts; }
wrong() { udp "$1" InErrors; }

# Starts it, waits and shows the time that is left on a terminal, stops it.
generate() {
  local left
  at "$FROM" sh -c 'echo start > /proc/self/net/pktgen/pgctrl' &
  STARTER=$!
  for ((left = LENGTH; left > 0; left--)); do
    if [ -t 2 ]; then printf '\r%s s left ' "$left" >&2; fi
    sleep 1
    kill -0 "$STARTER" 2> /dev/null || die "pktgen stopped by itself: $(at "$FROM" tail -n 1 /proc/self/net/pktgen/eth0)"
  done
  if [ -t 2 ]; then printf '\r\e[K' >&2; fi
  at "$FROM" sh -c 'echo stop > /proc/self/net/pktgen/pgctrl'
  wait "$STARTER" || true
  STARTER=''
}

# result_of PATTERN: a number of the generator's report.
result_of() { at "$FROM" grep -oE "$1" /proc/self/net/pktgen/eth0 | grep -oE '[0-9]+' | tail -n 1; }

show() { # show PPS SENT ERRORS FRAMES DATAGRAMS WRONG MICROSECONDS
  local text
  text=$(jq -n --arg kernel "$(uname -r)" --arg from "$FROM" --arg to "$TO" --argjson family "$FAMILY" \
    --arg rate "$RATE" --argjson flows "$FLOWS" --argjson size "$SIZE" --argjson seconds "$(jq -n "$7 / 1e6")" \
    --argjson pps "$1" --argjson sent "$2" --argjson errors "$3" --argjson frames "$4" --argjson datagrams "$5" --argjson wrong "$6" \
    '{kernel: $kernel, from: $from, to: $to, family: $family, rate: $rate, flows: $flows, size: $size, seconds: $seconds,
      sent: {pps: $pps, packets: $sent, errors: $errors},
      received: {frames: $frames, datagrams: $datagrams, wrong: $wrong, pps: ($datagrams / $seconds | round)}}')
  if [ "$OUTPUT" = json ]; then printf '%s\n' "$text"; return; fi
  jq -r '"sent      \(.sent.packets) packets, \(.sent.pps) a second, \(.sent.errors) errors (\(.from), \(.flows) flows, \(.size) bytes)",
    "received  \(.received.datagrams) datagrams, \(.received.pps) a second, \(.received.wrong) with errors (\(.to); \(.received.frames) frames)"' <<< "$text"
}

parse_options "$@"
if [ "$FAMILY" = 6 ] && [ "$SIZE" -lt 82 ]; then
  # Ethernet, IPv6, UDP and what pktgen writes for itself behind them.
  SIZE=82
fi
need_root "pktgen.sh"
for tool in ip jq nstat modprobe ping; do
  command -v "$tool" > /dev/null || die "'$tool' is not installed: run scripts/install-deps.sh"
done
load_pktgen
trap clean_up EXIT
trap 'exit 130' INT TERM
check_pod "$FROM"
check_pod "$TO"
destination=${ADDRESS:-$(address_of "$TO")}
set_up "$(address_of "$FROM")" "$destination" "$(gateway_mac "$destination")"
before=("$(frames "$TO")" "$(datagrams "$TO")" "$(wrong "$TO")")
generate
# What is still under way.
sleep 0.5
received=$(($(datagrams "$TO") - before[1]))
show "$(result_of '[0-9]+pps')" "$(result_of 'pkts-sofar: [0-9]+')" "$(result_of 'errors: [0-9]+$')" \
  $(($(frames "$TO") - before[0])) "$received" $(($(wrong "$TO") - before[2])) "$(result_of 'OK: [0-9]+')"
[ "$received" -gt 0 ] || { say "nothing arrived at $TO: overlane drops says why"; exit 1; }
