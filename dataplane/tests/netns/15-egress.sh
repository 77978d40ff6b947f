#!/usr/bin/env bash
# Pods reach the outside with their node's address: the underlay and the outside never see a pod's.
# shellcheck source=dataplane/tests/netns/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# of_node NODE FAMILY, of_pod NODE POD FAMILY, outside FAMILY: addresses.
of_node() { "node_ip$2" "$1"; }
of_pod() { "pod_ip$3" "$1" "$2"; }
outside() { case $1 in 4) printf '%s' "$EXT4" ;; 6) printf '%s' "$EXT6" ;; esac; }

# seen_by_tcp NAME SERVER-NAME ADDRESS WANTED [PORT], seen_by_udp ...: whom the server sees.
seen_by_tcp() { equal "the answer" "$(get "$1" "http://$(in_url "$3"):${5:-8080}/")" "$2 $4"; }
seen_by_udp() { equal "the answer" "$(ask "$1" "$3" 53)" "$2 $4"; }

# leaving TITLE FAMILY: each node's pods reach the outside, with their node's address.
leaving() {
  local title="$1, IPv$2" ext node
  ext=$(outside "$2")
  for node in a b; do
    check "$title: from $node: the web server sees the node" seen_by_tcp "$node-pod1" ext "$ext" "$(of_node "$node" "$2")"
    check "$title: from $node: so does one of datagrams" seen_by_udp "$node-pod1" ext "$ext" "$(of_node "$node" "$2")"
    check "$title: from $node: ping" one_ping "$node-pod1" "$ext"
    check "$title: from $node: TCP, byte by byte" tcp_echo "$node-pod2" "$ext"
    check "$title: from $node: UDP, all sizes" udp_echo "$node-pod2" "$ext"
  done
  check "$title: the server's log has the nodes, nobody else" logged "$2"
  check "$title: a closed TCP port outside refuses" refused a-pod1 "http://$(in_url "$ext"):81/"
  check "$title: a closed UDP port outside refuses" udp_refused a-pod1 "$ext" 81
  check "$title: pods see each other's own addresses" \
    seen_by_tcp a-pod1 b-pod2 "$(of_pod b 2 "$2")" "$(of_pod a 1 "$2")"
}

logged() {
  case $1 in
    4) equal "who asked" "$(clients ext | tr ' ' '\n' | grep -F . | tr '\n' ' ')" "$(node_ip4 a) $(node_ip4 b) " ;;
    6) equal "who asked" "$(clients ext | tr ' ' '\n' | grep -F : | tr '\n' ' ')" "$(node_ip6 a) $(node_ip6 b) " ;;
  esac
}

# routers TITLE: those on the way answer the pod that asked.
routers() {
  check "$1: a packet that dies at the router, IPv4" hop a-pod1 "$EXT4" 2 "$ROUTER4"
  check "$1: a packet that dies at the router, IPv6" hop a-pod1 "$EXT6" 2 "$ROUTER6"
}

# unsolicited TITLE FAMILY: a port that a pod's connection leaves with is open to its other end only.
unsolicited() {
  local address session port
  address=$(of_node a "$2")
  start a-pod1 "$PYTHON" "$HERE/echo.py" session "$(outside "$2")" 7000
  session=$STARTED
  wait_until 3 has_left "$address" || true
  port=$(port_outside "$address")
  check "$1, IPv$2: the pod's connection has a port of the range" at_least port "${port:-0}" 10240
  check "$1, IPv$2: somebody else's connection to it is dropped by name" \
    dropped a snat_unsolicited get ext "http://$(in_url "$address"):$port/" --max-time 1
  check "$1, IPv$2: so is a datagram to its number" unsolicited_datagram "$2"
  check "$1, IPv$2: so is what comes to a port that nobody uses" dropped a snat_unsolicited ask ext "$address" 20000
  check "$1, IPv$2: a program of the node that listens among the ports is reached" \
    wait_until 3 seen_by_tcp ext a "$address" "$(outside "$2")" 10250
  stop_one "$session"
}
# port_outside ADDRESS: that of a node's connection to the echo server outside.
port_outside() {
  at ext ss -Htn state established 'sport = :7000' | awk '{ print $4 }' | tr -d '[]' | sed 's/^::ffff://' |
    grep -F "$1:" | sed 's/.*://' | head -n 1
}
has_left() { [ -n "$(port_outside "$1")" ]; }
# The TCP connection's port, and the same number of UDP: its block of ports is the node's pods'.
unsolicited_datagram() {
  dropped a snat_unsolicited ask ext "$(of_node a "$1")" "$(port_outside "$(of_node a "$1")")"
}

# with_config NODE: its configuration and what standard input adds; control starts anew with it.
with_config() {
  { cat "$WORK/node.$1"; cat; } > "$WORK/config"
  put "$RUN_DIR/$1/node.yaml" < "$WORK/config"
  testbed restart-control "$1"
  wait_until 15 node_ready "$1"
}

rules() {
  cp "$RUN_DIR/a/node.yaml" "$WORK/node.a"
  check "a rule that denies" with_config a <<'YAML'
egress:
  - name: quarantine
    podSelector: {matchLabels: {app: pod2}}
    destinationCIDRs: [203.0.113.0/24, "2001:db8:113::/64"]
    action: deny
YAML
  for f in 4 6; do
    check "denied: IPv$f" wait_until 5 dropped a egress_denied get a-pod2 "http://$(in_url "$(outside $f)"):8080/" --max-time 1
    check "not denied: another pod, IPv$f" seen_by_tcp a-pod1 ext "$(outside $f)" "$(of_node a $f)"
    check "not denied: another destination, IPv$f" one_ping a-pod2 "$(of_pod b 2 $f)"
  done
  check "no pod's address left" no_pod_outside "$WORK/pcap"
  pods_may_leave
  check "ranges that are not translated" with_config a <<'YAML'
snat:
  nonMasqueradeCIDRs: [203.0.113.0/24]
YAML
  : > "$WORK/web.ext"
  check "there the pod's own address is seen" wait_until 5 own_address
  check "elsewhere the node's" seen_by_tcp a-pod1 ext "$EXT6" "$(node_ip6 a)"
}
# Nobody routes an answer to the pod: what counts is what arrives.
own_address() {
  not ask a-pod1 "$EXT4" 53
  grep -qx "udp $(pod_ip4 a 1) -" "$WORK/web.ext"
}

servers() {
  web ext
  web ext 53
  serve ext
  web b-pod2
}

bed
servers
serve a
# As a kubelet does.
web a 10250
start ext "$PYTHON" "$HERE/echo.py" session "$(node_ip4 a)" 7000
session=$STARTED session_log=$STARTED_LOG
capture_begin "$WORK/pcap"
for family in 4 6; do leaving "geneve" "$family"; done
routers "geneve"
narrow_path "geneve"
for family in 4 6; do unsolicited "geneve" "$family"; done
check "no pod's address left, ever" no_pod_outside "$WORK/pcap"
check "no bad checksum on the underlay" good_checksums "$WORK/pcap"
rules
capture_end
stop_one "$session"
printf '# %s\n' "$(cat "$session_log")"
check "a connection to the node itself was never broken" equal error "$(jq -r .error "$session_log")" null
check "and never waited for more than 1.5 s" at_most gap "$(jq -r .longest_gap_ms "$session_log")" 1500
for node in $NODE_NAMES; do check "counters of $node close" closes "$node"; done
stop_started

for options in "vxlan 6" "native 4"; do
  bed --mode "${options% *}" --underlay "${options#* }"
  servers
  capture_begin "$WORK/pcap"
  for family in 4 6; do leaving "${options% *}" "$family"; done
  capture_end
  check "${options% *}: no pod's address left" no_pod_outside "$WORK/pcap"
  for node in $NODE_NAMES; do check "${options% *}: counters of $node close" closes "$node"; done
  stop_started
done
finish
