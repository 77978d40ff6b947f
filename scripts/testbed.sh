#!/usr/bin/env bash
# A small cluster in network namespaces, on one machine. See usage below.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib/common.sh
. "$here/lib/common.sh"
# shellcheck source=scripts/lib/addresses.sh
. "$here/lib/addresses.sh"
# shellcheck source=scripts/lib/topology.sh
. "$here/lib/topology.sh"
# shellcheck source=scripts/lib/manifests.sh
. "$here/lib/manifests.sh"
# shellcheck source=scripts/lib/processes.sh
. "$here/lib/processes.sh"
# shellcheck source=scripts/lib/drawing.sh
. "$here/lib/drawing.sh"

usage() {
  cat <<'TEXT'
usage: testbed.sh up [options]          bring the testbed up (as it is, if it is up with the same options)
       testbed.sh down                  stop its programs, remove its namespaces
       testbed.sh status                a drawing, and what each node says about itself
       testbed.sh exec NAME -- CMD...   run CMD in a namespace: a, b, a-pod1, ext, net
       testbed.sh start|stop|restart-dataplane NODE     one node's dataplane
       testbed.sh start|stop|restart-control NODE       one node's control

options of up:
  --mode geneve|vxlan|native|flat   how nodes reach each other's pods (geneve)
  --mode-of NODE=MODE               another mode for one node; may be repeated
  --underlay 4|6                    family of the outer header (4)
  --workers N                       worker threads of each node, and queues of its uplink (1)
  --nodes N                         nodes: a, b, ... (2)
  --pods N                          pods of each node (2)
  --polling busy|adaptive           how workers wait for packets (the dataplane's default)
  --vni N                           VNI of the cluster's network (1)
  --tunnel-port N                   UDP port of the tunnel (that of the mode)
  --mtu N                           MTU of the underlay, bytes (1500)
  --transmit auto|af-xdp|program    how dataplanes send to veths (auto)
  --no-coalesce                     dataplanes send packet by packet, never segments together
  --log LEVEL                       the dataplanes' log level
  --announce                        load balancers' addresses of the node network are answered for
  --no-processes                    the network and the files, but no programs

OVERLANE_BIN: folder of the programs (target/release). OVERLANE_TRANSMIT: what --transmit is when it is not given. OVERLANE_TESTBED_PREFIX and
OVERLANE_RUN_DIR: another name (ovl) and folder (/run/overlane), for a second testbed.
TEXT
}

STATE=$RUN_DIR/testbed.state

defaults() {
  MODE=geneve MODES_OF='' UNDERLAY=4 WORKERS=1 NODES=2 PODS=2 POLLING='' VNI=1
  TUNNEL_PORT='' MTU=1500 LOG_LEVEL='' ANNOUNCE=no PROCESSES=yes COALESCE=yes TRANSMIT=${OVERLANE_TRANSMIT:-}
}

number() { # number OPTION VALUE LOW HIGH
  if ! [[ $2 =~ ^[0-9]{1,8}$ ]] || [ "$2" -lt "$3" ] || [ "$2" -gt "$4" ]; then
    usage_error "$1 $2: a number from $3 to $4 is wanted"
  fi
}

one_of() { # one_of OPTION VALUE WORDS...
  local option=$1 value=$2 word
  shift 2
  for word in "$@"; do [ "$word" != "$value" ] || return 0; done
  usage_error "$option $value: one of '$*' is wanted"
}

parse_options() {
  while [ $# -gt 0 ]; do
    case $1 in
      --no-processes) PROCESSES=no; shift; continue ;;
      --announce) ANNOUNCE=yes; shift; continue ;;
      --no-coalesce) COALESCE=no; shift; continue ;;
      --mode | --mode-of | --underlay | --workers | --nodes | --pods | --polling | --transmit | --vni | --tunnel-port | --mtu | --log)
        [ $# -ge 2 ] || usage_error "$1 wants a value" ;;
      *) usage_error "unknown option '$1'; testbed.sh --help lists them" ;;
    esac
    case $1 in
      --mode) one_of "$1" "$2" geneve vxlan native flat; MODE=$2 ;;
      --mode-of) MODES_OF+="${MODES_OF:+ }$2" ;;
      --underlay) one_of "$1" "$2" 4 6; UNDERLAY=$2 ;;
      --workers) number "$1" "$2" 1 64; WORKERS=$2 ;;
      --nodes) number "$1" "$2" 1 "$MAX_NODES"; NODES=$2 ;;
      --pods) number "$1" "$2" 0 "$MAX_PODS"; PODS=$2 ;;
      --transmit) one_of "$1" "$2" auto af-xdp program; TRANSMIT=$2 ;;
      --polling) one_of "$1" "$2" busy adaptive; POLLING=$2 ;;
      --vni) number "$1" "$2" 0 16777215; VNI=$2 ;;
      --tunnel-port) number "$1" "$2" 1 65535; TUNNEL_PORT=$2 ;;
      --mtu) number "$1" "$2" 1280 3506; MTU=$2 ;;
      --log) LOG_LEVEL=$2 ;;
    esac
    shift 2
  done
  node_names
  check_modes_of
}

node_names() {
  local i
  NODE_NAMES=''
  for ((i = 1; i <= NODES; i++)); do NODE_NAMES+="${NODE_NAMES:+ }$(node_letter "$i")"; done
}

check_modes_of() {
  local pair
  for pair in $MODES_OF; do
    [[ " $NODE_NAMES " == *" ${pair%%=*} "* ]] || usage_error "--mode-of $pair: the nodes are '$NODE_NAMES'"
    one_of --mode-of "${pair#*=}" geneve vxlan native flat
  done
}

OPTIONS=(MODE MODES_OF UNDERLAY WORKERS NODES PODS POLLING VNI TUNNEL_PORT MTU LOG_LEVEL ANNOUNCE PROCESSES COALESCE TRANSMIT)

options_text() {
  local name
  for name in "${OPTIONS[@]}"; do printf '%s=%s\n' "$name" "${!name}"; done
}

# Read the options of the testbed that is up. Data, not code: only known names are taken.
load_state() {
  local name
  [ -s "$STATE" ] || return 1
  defaults
  for name in "${OPTIONS[@]}"; do
    printf -v "$name" '%s' "$(sed -n "s/^$name=//p" "$STATE" | head -n 1)"
  done
  node_names
}

# The same options, all namespaces there, all programs alive?
is_up_as_asked() {
  local ns node
  [ -s "$STATE" ] && grep -qx 'complete=yes' "$STATE" || return 1
  [ "$(options_text)" = "$(grep -E "^($(IFS='|'; printf '%s' "${OPTIONS[*]}"))=" "$STATE")" ] || return 1
  while read -r ns; do [ -e "/run/netns/$ns" ] || return 1; done < <(sed -n 's/^namespace=//p' "$STATE")
  [ "$PROCESSES" = yes ] || return 0
  for node in $NODE_NAMES; do
    running dataplane "$node" > /dev/null && running control "$node" > /dev/null && node_ready "$node" || return 1
  done
}

# A namespace of our names that we did not write down belongs to somebody else.
refuse_strangers() {
  local ns
  while read -r ns _; do
    if [[ $ns == "$PREFIX"-* ]]; then
      die "namespace $ns exists, but not from this script: remove it with 'ip netns delete $ns', or choose another prefix with OVERLANE_TESTBED_PREFIX"
    fi
  done < <(ip netns list)
}

lock() {
  mkdir -p "$RUN_DIR"
  exec 9> "$RUN_DIR/testbed.lock"
  flock -w 60 9 || die "another testbed.sh is at work (it holds $RUN_DIR/testbed.lock for more than 60 s)"
}

check_tools() {
  local tool
  for tool in ip ethtool sysctl flock jq; do
    command -v "$tool" > /dev/null || die "'$tool' is not installed: run scripts/install-deps.sh"
  done
  if [ "$PROCESSES" = yes ]; then
    for tool in overlane-dataplane overlane-control overlane; do program "$tool" > /dev/null || exit 1; done
  fi
}

take_down() {
  stop_all
  if [ -e "$STATE" ]; then remove_namespaces; fi
  # Only what this script puts there.
  find "$RUN_DIR" -mindepth 1 -maxdepth 1 -type d -name '[a-n]' -exec rm -r {} +
  rm -f "$STATE"
}

failed_up() {
  trap - EXIT INT TERM
  warn "the testbed did not come up; cleaning up"
  if [ "${OVERLANE_KEEP_LOGS:-}" ]; then
    mkdir -p "$OVERLANE_KEEP_LOGS"
    cp -r "$RUN_DIR"/. "$OVERLANE_KEEP_LOGS" 2> /dev/null || true
  fi
  take_down
  exit 1
}

up() {
  defaults
  parse_options "$@"
  need_root "testbed.sh up"
  check_tools
  lock
  if is_up_as_asked; then say "the testbed is up"; return; fi
  take_down
  refuse_strangers
  trap failed_up EXIT
  trap 'exit 130' INT TERM
  options_text > "$STATE"
  build_topology
  write_manifests
  if [ "$PROCESSES" = yes ]; then
    start_all
    # shellcheck disable=SC2086
    wait_ready $NODE_NAMES
  fi
  printf 'complete=yes\n' >> "$STATE"
  trap - EXIT INT TERM
  say "the testbed is up: $NODES nodes, $PODS pods each, mode $MODE, underlay IPv$UNDERLAY"
}

down() {
  need_root "testbed.sh down"
  lock
  take_down
  say "the testbed is down"
}

status() {
  local node complete=no
  load_state || die "the testbed is not up: testbed.sh up"
  draw_testbed
  for node in $NODE_NAMES; do
    if running dataplane "$node" > /dev/null; then
      printf '%snode %s%s\n' "$BOLD" "$node" "$PLAIN"
      overlane_cli "$node" status || warn "node $node does not answer"
    fi
  done
  ! grep -qx 'complete=yes' "$STATE" || complete=yes
  [ "$complete" = yes ] || die "bringing it up was not finished: testbed.sh down"
}

exec_in() {
  local name=${1:-} ns
  if [ $# -lt 3 ] || [ "$2" != -- ]; then usage_error "testbed.sh exec NAME -- CMD..."; fi
  shift 2
  ns=$(namespace "${name#"$PREFIX"-}")
  [ -e "/run/netns/$ns" ] || die "there is no namespace $ns: those of the testbed are $(sed -n 's/^namespace=//p' "$STATE" 2> /dev/null | tr '\n' ' ')"
  exec ip netns exec "$ns" "$@"
}

one_program() { # one_program start|stop|restart-PROGRAM NODE [SIGNAL]
  local verb=${1%%-*} what=${1#*-} node=${2:-}
  load_state || die "the testbed is not up: testbed.sh up"
  if [ -z "$node" ] || [[ " $NODE_NAMES " != *" $node "* ]]; then
    usage_error "$1 wants one of the nodes '$NODE_NAMES'"
  fi
  need_root "testbed.sh $1"
  case $verb in stop | restart) stop_program "$what" "$node" "${3:-TERM}" ;; esac
  case $verb in start | restart) "start_$what" "$node" ;; esac
}

case ${1:-} in
  up) shift; up "$@" ;;
  down) down ;;
  status) status ;;
  exec) shift; exec_in "$@" ;;
  start-dataplane | stop-dataplane | restart-dataplane | start-control | stop-control | restart-control) one_program "$@" ;;
  -h | --help | help) usage ;;
  *) usage >&2; exit 2 ;;
esac
