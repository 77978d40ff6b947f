# shellcheck shell=bash disable=SC2034
# What the scenarios share. A scenario is a bash file that sources this one, brings a testbed
# up with `bed`, makes its checks and ends with `finish`. Its testbed has names of its own
# (ovt-a, /run/overlane-test), so that one that a person has up is left alone; whatever a
# scenario started is gone when it ends, however it ends.
set -euo pipefail

export OVERLANE_TESTBED_PREFIX=${OVERLANE_NETNS_PREFIX:-ovt} OVERLANE_RUN_DIR=${OVERLANE_NETNS_RUN_DIR:-/run/overlane-test}

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
SCRIPTS=$HERE/../../../scripts
# shellcheck source=scripts/lib/common.sh
. "$SCRIPTS/lib/common.sh"
# shellcheck source=scripts/lib/addresses.sh
. "$SCRIPTS/lib/addresses.sh"
# shellcheck source=scripts/lib/topology.sh
. "$SCRIPTS/lib/topology.sh"
# shellcheck source=scripts/lib/manifests.sh
. "$SCRIPTS/lib/manifests.sh"
# shellcheck source=scripts/lib/processes.sh
. "$SCRIPTS/lib/processes.sh"

# Debian's own: it is the one that has scapy.
PYTHON=/usr/bin/python3
STATE=$RUN_DIR/testbed.state
LONG=${OVERLANE_TEST_LENGTH:-quick}
CHECKS=0 BAD=0
STARTED_PIDS=() WATCH=''
WORK=$(mktemp -d /tmp/overlane-netns.XXXXXX)
# Defaults of the testbed, as `bed` leaves them.
MODE=geneve UNDERLAY=4 PODS=2 NODE_NAMES='a b' WORKERS=1 MTU=1500

# One scenario at a time, whoever started it: they share names. A runner holds the lock itself.
if [ -z "${OVERLANE_SCENARIO_LOCKED:-}" ]; then
  exec 8> /run/overlane-netns-tests.lock
  flock -w 900 8 || die "other scenarios have been at work for 15 minutes (/run/overlane-netns-tests.lock)"
fi

cleanup() {
  trap - EXIT
  [ -z "$WATCH" ] || stop_one "$WATCH"
  stop_started
  "$SCRIPTS/testbed.sh" down > /dev/null 2>&1 || true
  rm -rf "$WORK"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

testbed() { "$SCRIPTS/testbed.sh" "$@"; }

# bed OPTIONS...: a testbed; up to here nothing has been checked, so failing ends the scenario.
bed() {
  local n nodes=2 name
  watch_end
  MODE=geneve UNDERLAY=4 PODS=2 WORKERS=1 MTU=1500
  testbed up "$@" 2> "$WORK/up" || { cat "$WORK/up" >&2; die "the testbed did not come up: $*"; }
  for name in MODE UNDERLAY PODS WORKERS MTU NODES; do
    printf -v "$name" '%s' "$(sed -n "s/^$name=//p" "$STATE")"
  done
  # shellcheck disable=SC2153
  nodes=$NODES NODE_NAMES=''
  for ((n = 1; n <= nodes; n++)); do NODE_NAMES+="${NODE_NAMES:+ }$(node_letter "$n")"; done
  # In flat mode pods are at home on the underlay.
  case " $* " in *flat*) ;; *) watch_begin ;; esac
  printf '%s\n' "# testbed: $*"
}

# In every scenario: no packet leaves a node's uplink with a pod's own address as its outer source,
# unless it goes to a pod or a node. A network outside drops those, or worse.
OUTSIDE='(src net 10.244.0.0/16 or src net fd12:3456::/48) and not
  (dst net 10.244.0.0/16 or dst net 10.0.0.0/16 or dst net fd12:3456::/48 or dst net fd00:10::/48 or ip6 multicast)'
watch_begin() {
  WATCHED=$WORK/watched.pcap
  rm -f "$WATCHED"
  ip netns exec "$(namespace net)" tcpdump --immediate-mode -Z root -ni br0 -U -w "$WATCHED" "$OUTSIDE" \
    > "$WORK/watch" 2>&1 < /dev/null 8>&- &
  WATCH=$!
  wait_until 5 test -s "$WATCHED" || die "tcpdump did not start: $(cat "$WORK/watch")"
}
watch_end() {
  [ -n "$WATCH" ] || return 0
  stop_one "$WATCH" INT
  WATCH=''
  check "no pod's address left for the outside, all the while" no_pod_outside "$WATCHED"
}
# Up to here; from now on a configuration says that they may.
pods_may_leave() { watch_end; }

# at NAME COMMAND...: in that namespace.
at() { in_ns "$@"; }

# start NAME COMMAND...: in that namespace, in the background, until the scenario ends.
# Its process id is in STARTED, what it says in STARTED_LOG.
start() {
  STARTED_LOG=$WORK/started.${#STARTED_PIDS[@]}
  # Of an earlier one, whose last word could be taken for this one's.
  rm -f "$STARTED_LOG"
  ip netns exec "$(namespace "$1")" "${@:2}" > "$STARTED_LOG" 2>&1 < /dev/null 8>&- &
  STARTED=$!
  STARTED_PIDS+=("$STARTED")
}

stop_started() {
  local pid
  for pid in ${STARTED_PIDS[@]+"${STARTED_PIDS[@]}"}; do kill "$pid" 2> /dev/null || true; done
  for pid in ${STARTED_PIDS[@]+"${STARTED_PIDS[@]}"}; do wait "$pid" 2> /dev/null || true; done
  STARTED_PIDS=()
}

# stop_one PID [SIGNAL]: end one and wait for it.
stop_one() {
  kill "-${2:-TERM}" "$1" 2> /dev/null || true
  wait "$1" 2> /dev/null || true
}

# check TITLE COMMAND...: counts; shows what the command said when it fails.
check() {
  local title=$1 status
  shift
  CHECKS=$((CHECKS + 1))
  # In a subshell of its own, so that the first command that fails inside ends it.
  set +e
  (set -e; "$@") > "$WORK/said" 2>&1
  status=$?
  set -e
  if [ "$status" = 0 ]; then
    printf '  ok   %s\n' "$title"
  else
    BAD=$((BAD + 1))
    printf '  BAD  %s\n' "$title"
    printf '         %s\n' "$*"
    tail -n 8 "$WORK/said" | sed 's/^/         /'
  fi
}

not() { if "$@"; then return 1; fi; }

# equal WHAT GOT WANTED; at_least, at_most: numbers.
equal() { [ "$2" = "$3" ] || { echo "$1 is '$2', wanted '$3'"; return 1; }; }
at_least() { awk -v a="$2" -v b="$3" 'BEGIN { exit !(a >= b) }' || { echo "$1 is $2, wanted at least $3"; return 1; }; }
at_most() { awk -v a="$2" -v b="$3" 'BEGIN { exit !(a <= b) }' || { echo "$1 is $2, wanted at most $3"; return 1; }; }

skip() { printf '# skipped: %s\n' "$*"; exit 77; }

finish() {
  watch_end
  if [ "$BAD" != 0 ]; then
    show_state
    printf '# %d of %d checks failed\n' "$BAD" "$CHECKS"
    exit 1
  fi
  [ "$CHECKS" != 0 ] || die "the scenario checked nothing"
  printf '# %d checks\n' "$CHECKS"
}

# For whoever looks at a failure.
show_state() {
  local node
  for node in $NODE_NAMES; do
    [ -e "$RUN_DIR/$node/dataplane.log" ] || continue
    printf -- '# --- node %s: drops\n' "$node"
    overlane_cli "$node" drops 2>&1 | tail -n 20 || true
    printf -- '# --- node %s: the end of its logs\n' "$node"
    tail -n 8 "$RUN_DIR/$node"/*.log || true
  done
}

# status_of NODE JQ-FILTER; drops_of NODE REASON: a number; endpoints_of NODE JQ-FILTER.
status_of() { overlane_cli "$1" -o json status | jq -r "$2"; }
endpoints_of() { overlane_cli "$1" -o json endpoint list | jq -r "$2"; }
drops_of() {
  overlane_cli "$1" -o json drops | jq -r --arg reason "$2" \
    '[.. | objects | select(.reason? == $reason) | .packets] | add // 0'
}

# closes NODE: no packet was lost track of.
closes() {
  local residuals
  residuals=$(status_of "$1" '[.workers[].residual] | map(tostring) | join(" ")')
  [[ $residuals =~ ^(0( |$))+$ ]] || { echo "residuals of node $1: $residuals"; return 1; }
}

# one_ping NAME ADDRESS [PING-OPTIONS...]: one answer within 2 s. One repetition, for the first
# packet may have to wait for a neighbour.
one_ping() {
  local name=$1 address=$2
  shift 2
  at "$name" ping -n -c 1 -W 1 "$@" "$address" || at "$name" ping -n -c 1 -W 2 "$@" "$address"
}
# lost_pings LOG: how many pings of `ping -n` found no answer. Of the last 20 none is counted after the
# last that did: when ping was ended they may have been on their way.
lost_pings() {
  awk '/icmp_seq=/ { sub(/.*icmp_seq=/, ""); answered++; if ($1 + 0 > last) last = $1 + 0 }
    /packets transmitted/ { sent = $1 }
    END {
      if (!answered || !sent) { print "all"; exit }
      late = sent - last - 20
      print last - answered + (late > 0 ? late : 0)
    }' "$1"
}
no_ping() { not at "$1" ping -n -c 1 -W 1 "${@:3}" "$2"; }

# serve NAME: echo on TCP and UDP port 7000, both families.
serve() {
  start "$1" "$PYTHON" "$HERE/echo.py" serve 7000
  wait_until 5 grep -qs ready "$STARTED_LOG" || die "the echo server in $1 did not start: $(cat "$STARTED_LOG")"
}
tcp_echo() { at "$1" "$PYTHON" "$HERE/echo.py" tcp "$2" 7000 "${3:-200000}"; }
# udp_echo NAME ADDRESS [COUNT [BYTES]]
udp_echo() { at "$1" "$PYTHON" "$HERE/echo.py" udp "$2" 7000 "${3:-20}" "${@:4}"; }

# sctp_echo FROM ADDRESS PORT TO [SEEN [OWN]]: an association of FROM's port OWN; its packets, whole and in fragments,
# come to port 1132 of TO as they were sent, with right checksums, and are answered by ADDRESS. SEEN: who TO sees.
sctp_echo() {
  local heard
  start "$4" "$PYTHON" "$HERE/sctp.py" hear 1132 20
  heard=$STARTED_LOG
  wait_until 5 grep -qs ready "$heard"
  at "$1" "$PYTHON" "$HERE/sctp.py" tell "$2" "$3" "${6:-40000}"
  wait_until 3 grep -qs ' 3032 ' "$heard" || true
  stop_one "$STARTED"
  equal "lengths and checksums" "$(sed 1d "$heard" | awk '{ printf "%s %s ", $3, $4 }')" \
    "32 good 24 good 2428 good 3032 good "
  [ -z "${5:-}" ] || equal "who is seen" "$(sed 1d "$heard" | awk '{ print $1 }' | sort -u)" "$5"
}

# web NAME [PORT]: scripts/lib/web.py there, as NAME, on port 8080; its log is $WORK/web.NAME.
web() {
  : > "$WORK/web.$1"
  start "$1" "$PYTHON" "$SCRIPTS/lib/web.py" "$1" "${2:-8080}" "$WORK/web.$1"
  wait_until 5 grep -qs ready "$STARTED_LOG" || die "the web server in $1 did not start: $(cat "$STARTED_LOG")"
}
# get NAME URL [CURL-OPTIONS...]: from there, within 5 s.
get() { at "$1" curl -sS -g --noproxy '*' --max-time 5 "${@:3}" "$2"; }
# ask NAME ADDRESS PORT: what the web server there answers to a datagram, within 3 s.
ask() {
  at "$1" "$PYTHON" - "$2" "$3" <<'PYTHON'
import socket, sys
with socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM) as s:
    s.settimeout(1)
    s.connect((sys.argv[1], int(sys.argv[2])))
    for _ in range(3):
        s.send(b"who am I?")
        try:
            print(s.recv(100).decode().strip())
            break
        except ConnectionRefusedError:
            sys.exit("refused")
        except TimeoutError:
            continue
    else:
        sys.exit("no answer")
PYTHON
}
# refused NAME URL: a connection is refused within 1 s, not by silence.
refused() {
  local status=0 began=${EPOCHREALTIME/./}
  get "$1" "$2" || status=$?
  equal "curl's exit status" "$status" 7
  at_most "milliseconds" $(((${EPOCHREALTIME/./} - began) / 1000)) 1000
}
# udp_refused NAME ADDRESS PORT: somebody says that the port is closed.
udp_refused() {
  local said
  said=$(ask "$1" "$2" "$3" 2>&1) || true
  equal "the answer" "$said" refused
}
# dropped NODE REASON COMMAND...: it fails, and this is why.
dropped() {
  local before
  before=$(drops_of "$1" "$2")
  not "${@:3}"
  at_least "drops '$2'" $(($(drops_of "$1" "$2") - before)) 1
}
# in_url ADDRESS: as a URL has it.
in_url() { case $1 in *:*) printf '[%s]' "$1" ;; *) printf '%s' "$1" ;; esac; }
# clients NAME: the addresses that its web server saw, each once, in one line.
clients() { awk '{ print $2 }' "$WORK/web.$1" | sort -u | tr '\n' ' '; }

# capture_begin FILE [FILTER...]: what the underlay sees, from now until capture_end.
capture_begin() {
  start net tcpdump --immediate-mode -Z root -ni br0 -s 0 -U -w "$@"
  CAPTURE=$STARTED
  wait_until 5 test -s "$1" || die "tcpdump did not start: $(cat "$STARTED_LOG")"
}
capture_end() {
  sleep 0.3
  stop_one "$CAPTURE" INT
}
# no_frame FILE TSHARK-FILTER: none in the capture, at any depth of headers; it shows those there are.
no_frame() {
  local found
  # Our own ports are not the protocols that tshark knows by them.
  found=$(tshark -n -r "$1" -d "udp.port==7000,data" -d "tcp.port==7000,data" -d "udp.port==8080,data" \
    -o ip.check_checksum:TRUE -o udp.check_checksum:TRUE -o tcp.check_checksum:TRUE -Y "$2" 2> /dev/null)
  [ -z "$found" ] || { head -n 5 <<< "$found"; return 1; }
}
# good_checksums FILE: none of the capture's checksums is bad, inside and outside of tunnels. Of what
# ICMP errors quote, cut short, tshark says that it is. A kernel that finishes a TCP checksum of 0 in
# software writes 0xffff, which every receiver takes for the same (RFC 1071): one packet in 65536.
good_checksums() {
  local quoted='icmp.type in {3, 11, 12} || icmpv6.type < 128'
  no_frame "$1" 'ip.checksum.status == "Bad" || icmp.checksum.status == "Bad" || icmpv6.checksum.status == "Bad"'
  no_frame "$1" "(udp.checksum.status == \"Bad\" || (tcp.checksum.status == \"Bad\" && !tcp.checksum.ffff)) && !($quoted)"
}
# no_pod_outside FILE: no such frame (see OUTSIDE) is in the capture.
no_pod_outside() {
  local found
  found=$(tcpdump -Z root -nr "$1" "$OUTSIDE" 2> /dev/null)
  [ -z "$found" ] || { head -n 5 <<< "$found"; return 1; }
}

# hop NAME ADDRESS TTL ROUTER: a packet that dies at that hop is said to have died there.
hop() {
  local said
  said=$(at "$1" ping -n -c 2 -i 0.3 -W 1 -t "$3" "$2" || true)
  grep -qF "From $4" <<< "$said" || { echo "$said"; return 1; }
}

# narrow_path TITLE: behind the router is a link of 1300 bytes; the other end does not say so.
narrow_path() {
  local way4 way6
  link_in net set net-ext mtu 1300
  link_in ext set eth0 mtu 1300
  ip -n "$(namespace ext)" route change default via 203.0.113.1 advmss 1460
  ip -n "$(namespace ext)" -6 route change default via 2001:db8:113::1 advmss 1440
  check "$1: 1 MB gets through a narrow path, IPv4" tcp_echo a-pod1 "$EXT4" 1000000
  check "$1: 1 MB gets through a narrow path, IPv6" tcp_echo a-pod1 "$EXT6" 1000000
  way4=$(at a-pod1 ip route get "$EXT4") way6=$(at a-pod1 ip -6 route get "$EXT6")
  check "$1: and the pod knows its MTU, IPv4" grep -q 'mtu 1300' <<< "$way4"
  check "$1: and the pod knows its MTU, IPv6" grep -q 'mtu 1300' <<< "$way6"
  link_in ext set eth0 mtu 1500
  link_in net set net-ext mtu 1500
}

# iperf NAME ADDRESS JSON-FILE OPTIONS...: against a server started with `start NAME iperf3 -s`.
iperf() { at "$1" iperf3 -J -c "$2" "${@:4}" > "$3"; }

# cpu_ns PID: processor time of all its threads so far.
cpu_ns() { cat "/proc/$1"/task/*/schedstat | awk '{ n += $1 } END { printf "%d", n }'; }

node_pid() { running "$1" "$2"; }
