# shellcheck shell=bash disable=SC2034
# The bed of the peers and what their scripts share. A peer is a script that sources this one, says
# what it needs and how it is set up, and ends with `peer "$@"`:
#
#   peer_available JOB FLOWS    return 1 after printing what is missing; JOB may be empty: any job
#   peer_up JOB FLOWS     set the peer up on the bed; room for FLOWS flows
#   peer_workers          print the pattern of the names of the threads that do the work, and their
#                         processes' names (see `start`), or nothing where the kernel does it
#
# The bed, the same for all of them; nothing else of the machine is touched:
#
#   ovp-pod           ovp-node                                   ovp-net
#   pod0 ------------ podport  (the peer)  up0 ----------------- wire0
#   10.244.1.10                            10.0.1.4              10.0.1.5: the other node,
#                                                                10.0.0.1: the router
#
# pod0 and wire0 have no address in the kernel: whoever measures plays both ends. CPU 1 is the
# forwarder's, CPU 0 everything else's.
set -euo pipefail

PEERS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib/common.sh
. "$PEERS/../../scripts/lib/common.sh"
# shellcheck source=scripts/lib/background.sh
. "$PEERS/../../scripts/lib/background.sh"
PATH=$PATH:/usr/sbin:/sbin

# Debian's own: it is the one that has scapy.
PYTHON=/usr/bin/python3
RUN=${OVERLANE_PERF_RUN_DIR:-/run/overlane-perf}
POD_NS=ovp-pod NODE_NS=ovp-node WIRE_NS=ovp-net
JOBS='dnat-geneve dnat-vxlan snat'
WORKER_CPU=1 OTHER_CPU=0

POD_IP=10.244.1.10 POD_MAC=02:00:00:00:01:0a PORT_MAC=02:00:00:00:01:01
NODE_IP=10.0.1.4 NODE_MAC=02:00:00:00:01:04
REMOTE_IP=10.0.1.5 ROUTER_IP=10.0.0.1 WIRE_MAC=02:00:00:00:01:05
# The other node's gateway MAC: what inner frames to its pods are addressed to.
REMOTE_GATEWAY_MAC=02:4f:0a:00:01:05
# 16 services, each with 4 backends of its own on the other node: were they shared, connections of one port to
# two services could meet at one backend, and forwarders differ in what they do then. 16 hosts outside.
SERVICES=16 SERVICE_PORT=80 BACKEND_PORT=8080 BACKENDS=4
VNI=1 GENEVE_PORT=6081 VXLAN_PORT=4789
OUTSIDE_NET=203.0.113.0/24

# service_ip NUMBER, from 0.
service_ip() { printf '10.96.0.%s' $((16 + $1)); }

# backends_of NUMBER: of that service, one a line.
backends_of() {
  local backend
  for ((backend = 0; backend < BACKENDS; backend++)); do printf '10.244.2.%s\n' $((10 + BACKENDS * $1 + backend)); done
}

in_node() { ip netns exec "$NODE_NS" "$@"; }
tunnel_of() { case $1 in dnat-geneve) printf geneve ;; dnat-vxlan) printf vxlan ;; esac; }

new_namespace() {
  ip netns add "$1"
  # What the kernel says by itself would be among what is measured.
  ip netns exec "$1" sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1 \
    net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0 net.ipv4.ip_forward=0 \
    net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.default.send_redirects=0
  ip -n "$1" link set lo up
}

# cable NAMESPACE NAME MAC NAMESPACE NAME MAC: a veth pair that is up; no checksum is left undone.
cable() {
  ip -n "$1" link add "$2" address "$3" type veth peer name "$5" address "$6" netns "$4"
  ip netns exec "$1" ethtool -K "$2" tx off > /dev/null
  ip netns exec "$4" ethtool -K "$5" tx off > /dev/null
  ip -n "$1" link set "$2" up
  ip -n "$4" link set "$5" up
}

bed_up() {
  local ns
  for ns in "$POD_NS" "$NODE_NS" "$WIRE_NS"; do
    [ ! -e "/run/netns/$ns" ] || die "namespace $ns exists, but not from here: remove it with 'ip netns delete $ns'"
  done
  mkdir -p "$RUN"
  printf '%s\n' "$1" > "$RUN/bed"
  for ns in "$POD_NS" "$NODE_NS" "$WIRE_NS"; do new_namespace "$ns"; done
  cable "$POD_NS" pod0 "$POD_MAC" "$NODE_NS" podport "$PORT_MAC"
  cable "$WIRE_NS" wire0 "$WIRE_MAC" "$NODE_NS" up0 "$NODE_MAC"
  node_addresses up0
}

# node_addresses DEVICE: the node's address and whom it reaches by it. Nobody there answers ARP.
node_addresses() {
  local address
  ip -n "$NODE_NS" address add "$NODE_IP/16" dev "$1"
  for address in "$REMOTE_IP" "$ROUTER_IP"; do
    ip -n "$NODE_NS" neigh replace "$address" lladdr "$WIRE_MAC" dev "$1" nud permanent
  done
  ip -n "$NODE_NS" route add default via "$ROUTER_IP"
}

# start NAME COMMAND...: in the background, in the node's namespace; its log is $RUN/NAME.log.
start() {
  local name=$1
  shift
  background "$NODE_NS" "$RUN/$name" "$@"
}

# running NAME: its process id, if it is still the process that was started.
running() { background_pid "$RUN/$1"; }

# says NAME TEXT: has it written that? For wait_until; fails at once when it has ended.
says() {
  grep -q -e "$2" "$RUN/$1.log" && return 0
  running "$1" > /dev/null || die "$1 ended: $(tail -n 5 "$RUN/$1.log")"
  return 1
}

bed_down() {
  local file ns stoppers=()
  [ -e "$RUN/bed" ] || return 0
  # All at once: each may take a moment.
  for file in "$RUN"/*.pid; do
    [ ! -e "$file" ] || { stop_background "${file%.pid}" "$(basename "$file" .pid)" & stoppers+=("$!"); }
  done
  [ ${#stoppers[@]} = 0 ] || wait "${stoppers[@]}" || true
  for ns in "$POD_NS" "$NODE_NS" "$WIRE_NS"; do
    [ ! -e "/run/netns/$ns" ] || ip netns delete "$ns" || warn "could not delete namespace $ns"
  done
  # DPDK's own folder, and that of all DPDK programs if it is empty now.
  rm -rf "$RUN" /run/dpdk/overlane-perf
  rmdir /run/dpdk 2> /dev/null || true
}

# threads NAME: 'PID/TID NAME-OF-THREAD', one a line.
threads() {
  local pid task
  pid=$(running "$1") || return 0
  for task in "/proc/$pid/task/"*; do
    printf '%s/%s %s\n' "$pid" "$(basename "$task")" "$(cat "$task/comm" 2> /dev/null || true)"
  done
}

# workers: the threads that do the work.
workers() {
  local name pattern
  while read -r name pattern; do
    threads "$name" | grep -E "/[0-9]+ $pattern\$" || true
  done < <(peer_workers)
}

# level: how much the scheduler prefers this session, as a nice level. Where it groups processes by session,
# the group's counts, and a thread's own only inside of it.
level() {
  local group
  group=$(sed -n 's/.* nice //p' /proc/self/autogroup 2> /dev/null || true)
  if [ "$(cat /proc/sys/kernel/sched_autogroup_enabled 2> /dev/null || echo 0)" = 1 ]; then printf '%s' "${group:-0}"
  else nice; fi
}

# place: the threads that work on their CPU, and all others of what was started on the other one; all
# of them at the level of whoever measures.
place() {
  local file name thread working level
  level=$(level)
  working=$(workers | cut -d' ' -f1)
  for file in "$RUN"/*.pid; do
    [ -e "$file" ] || continue
    name=$(basename "$file" .pid)
    echo "$level" 2> /dev/null > "/proc/$(running "$name")/autogroup" || true
    while read -r thread _; do
      # A thread may have ended.
      if grep -qxF "$thread" <<< "$working"; then taskset -pc "$WORKER_CPU" "${thread#*/}" > /dev/null 2>&1 || true
      else taskset -pc "$OTHER_CPU" "${thread#*/}" > /dev/null 2>&1 || true; fi
    done < <(threads "$name")
  done
}

lock() {
  [ -z "${OVERLANE_PERF_LOCKED:-}" ] || return 0
  exec 8> /run/overlane-perf.lock
  flock -w 600 8 || die "the bed has been in use for ten minutes (/run/overlane-perf.lock)"
}

failed_up() {
  trap - EXIT INT TERM
  warn "$(basename "$0" .sh) did not come up; cleaning up"
  tail -n 5 "$RUN"/*.log >&2 2> /dev/null || true
  peer_down
  exit 1
}

peer_usage() {
  cat << TEXT
usage: $(basename "$0") available [JOB [FLOWS]]    can it be set up, and do that? else why not, and what to install
       $(basename "$0") up JOB FLOWS       set it up on the bed (namespaces ovp-pod, ovp-node, ovp-net)
       $(basename "$0") tune throughput|latency    the better way to receive for that (throughput)
       $(basename "$0") prove JOB          send a packet each way and look at what comes out
       $(basename "$0") pids               the threads that do the work: PID/TID NAME
       $(basename "$0") cpu                the CPU that they work on
       $(basename "$0") down               take all of it away
jobs: $JOBS
TEXT
}

# Whatever else a peer has set up; `bed_down` comes after it.
peer_down() { bed_down; }
# Only the kernel has two ways to receive.
peer_tune() { :; }
# What `prove` expects.
peer_proof() { printf '%s' "$1"; }

peer() {
  local verb=${1:-} job=${2:-} flows=${3:-1000}
  if [ "$verb" = tune ]; then
    case $job in throughput | latency) peer_tune "$job"; return ;; *) peer_usage >&2; exit 2 ;; esac
  fi
  case " $JOBS  " in *" $job "*) ;; *) usage_error "no job '$job': there are $JOBS" ;; esac
  [[ $flows =~ ^[0-9]{1,8}$ ]] || usage_error "$flows flows: a number is wanted"
  case $verb in
    available) peer_available "$job" "$flows" ;;
    up)
      [ -n "$job" ] || { peer_usage >&2; exit 2; }
      need_root "$(basename "$0") up"
      peer_available "$job" "$flows" || exit 1
      lock
      peer_down
      trap failed_up EXIT
      trap 'exit 130' INT TERM
      bed_up "$(basename "$0" .sh) $job"
      peer_up "$job" "$flows"
      place
      trap - EXIT INT TERM
      ;;
    prove) [ -n "$job" ] || { peer_usage >&2; exit 2; }; "$PYTHON" "$PEERS/prove.py" "$(peer_proof "$job")" ;;
    pids) workers ;;
    cpu) printf '%s\n' "$WORKER_CPU" ;;
    down) need_root "$(basename "$0") down"; lock; peer_down ;;
    -h | --help | help) peer_usage ;;
    *) peer_usage >&2; exit 2 ;;
  esac
}
