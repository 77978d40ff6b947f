#!/usr/bin/env bash
# Pods of one node leave by a NAT gateway that another node holds: the outside sees the gateway's
# address, the underlay no pod's but inside of the tunnel; and when the other node takes over, new
# connections leave by that.
# shellcheck source=dataplane/tests/netns/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# Of no node's network: the router is told where it is.
POOL4=198.51.100.7 POOL6=2001:db8:51::7

outside() { case $1 in 4) printf '%s' "$EXT4" ;; 6) printf '%s' "$EXT6" ;; esac; }
pool() { case $1 in 4) printf '%s' "$POOL4" ;; 6) printf '%s' "$POOL6" ;; esac; }
of_node() { "node_ip$2" "$1"; }

seen_by_tcp() { equal "the answer" "$(get "$1" "http://$(in_url "$2"):8080/")" "ext $3"; }
seen_by_udp() { equal "the answer" "$(ask "$1" "$2" 53)" "ext $3"; }

# live NAMES: all nodes know that these live, and so which one holds a gateway.
live() {
  local node other
  for node in $NODE_NAMES; do
    for other in ${1//,/ }; do
      [ "$(overlane_cli "$node" -o json node list | jq -r ".liveness[\"$other\"].liveness")" = live ] || return 1
    done
  done
}

# held_by NODES: all nodes are told that these hold the gateway; the router knows the first.
held_by() {
  local node first=${1%%,*}
  for node in $NODE_NAMES; do
    { cat "$WORK/node.$node"; cat <<YAML
membership: {takeBackAfter: 0}
gateways:
  - {name: out, addresses: [$POOL4, "$POOL6"], nodes: [$1]}
egress:
  - name: web
    podSelector: {matchLabels: {app: pod1}}
    action: gateway
    gateway: out
YAML
    } > "$WORK/config"
    put "$RUN_DIR/$node/node.yaml" < "$WORK/config"
    testbed restart-control "$node"
  done
  for node in $NODE_NAMES; do wait_until 15 node_ready "$node" || return 1; done
  # Of a gateway of one node nobody needs to know.
  [ "$1" = "$first" ] || wait_until 15 live "$1"
  ip -n "$(namespace net)" route replace "$POOL4" via "$(node_ip4 "$first")"
  ip -n "$(namespace net)" -6 route replace "$POOL6" via "$(node_ip6 "$first")"
}

# leaving TITLE NODE FAMILY: pod1 of the node leaves with the gateway's address, pod2 with its node's.
leaving() {
  local title="$1, IPv$3: from $2" ext
  ext=$(outside "$3")
  check "$title: the web server sees the gateway" wait_until 5 seen_by_tcp "$2-pod1" "$ext" "$(pool "$3")"
  check "$title: so does one of datagrams" seen_by_udp "$2-pod1" "$ext" "$(pool "$3")"
  check "$title: ping" one_ping "$2-pod1" "$ext"
  check "$title: TCP, byte by byte" tcp_echo "$2-pod1" "$ext"
  check "$title: UDP, all sizes" udp_echo "$2-pod1" "$ext"
  check "$title: a closed TCP port outside refuses" refused "$2-pod1" "http://$(in_url "$ext"):81/"
  check "$title: a closed UDP port outside refuses" udp_refused "$2-pod1" "$ext" 81
  check "$title: a pod that no rule names is seen as its node" \
    seen_by_tcp "$2-pod2" "$ext" "$(of_node "$2" "$3")"
}

# no_pod_but_inside FILE: no frame has a pod's address as its outer source or destination.
no_pod_but_inside() {
  local found
  found=$(tcpdump -Z root -nr "$1" "net 10.244.0.0/16 or net fd12:3456::/48" 2> /dev/null)
  [ -z "$found" ] || { head -n 5 <<< "$found"; return 1; }
}

servers() {
  web ext
  web ext 53
  serve ext
}

for options in "geneve 4 1" "vxlan 6 2"; do
  read -r mode underlay workers <<< "$options"
  bed --mode "$mode" --underlay "$underlay" --workers "$workers"
  for node in $NODE_NAMES; do cp "$RUN_DIR/$node/node.yaml" "$WORK/node.$node"; done
  servers
  capture_begin "$WORK/pcap"
  check "$mode: the gateway is at b" held_by b,a
  for family in 4 6; do
    for node in a b; do leaving "$mode" "$node" "$family"; done
  done
  check "$mode: a packet that dies at the holder, IPv4" hop a-pod1 "$EXT4" 2 "$(node_ip4 b)"
  check "$mode: a packet that dies at the holder, IPv6" hop a-pod1 "$EXT6" 2 "$(node_ip6 b)"
  check "$mode: a packet that dies at the router, IPv4" hop a-pod1 "$EXT4" 3 "$ROUTER4"
  check "$mode: a packet that dies at the router, IPv6" hop a-pod1 "$EXT6" 3 "$ROUTER6"
  check "$mode: the gateway moves to a" held_by a,b
  for family in 4 6; do
    for node in a b; do leaving "$mode, moved" "$node" "$family"; done
  done
  check "$mode: and back to b" held_by b,a
  # Last: the pod remembers the MTU, and would cut datagrams into fragments itself.
  narrow_path "$mode"
  capture_end
  check "$mode: no pod's address on the underlay but inside of tunnels" no_pod_but_inside "$WORK/pcap"
  check "$mode: no bad checksum on the underlay" good_checksums "$WORK/pcap"
  for node in $NODE_NAMES; do check "$mode: counters of $node close" closes "$node"; done
  stop_started
done

bed --mode native
for node in $NODE_NAMES; do cp "$RUN_DIR/$node/node.yaml" "$WORK/node.$node"; done
servers
capture_begin "$WORK/pcap"
check "native: the gateway is at b" held_by b
for family in 4 6; do
  check "native, IPv$family: refused by name" wait_until 5 \
    dropped a egress_gateway_native get a-pod1 "http://$(in_url "$(outside "$family")"):8080/" --max-time 1
done
capture_end
check "native: no pod's address left" no_pod_outside "$WORK/pcap"
for node in $NODE_NAMES; do check "native: counters of $node close" closes "$node"; done
finish
