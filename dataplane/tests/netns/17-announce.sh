#!/usr/bin/env bash
# Addresses of load balancers and of NAT gateways on the node network: one live node answers for
# each, another takes over when it dies, and it takes them back when it has been well for a while.
# shellcheck source=dataplane/tests/netns/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

VIP4=10.0.7.1 VIP6=fd00:10:0:7::1 POOL=10.0.9.1
# Seconds until another node answers: when the dataplane dies, its control says so; when control
# dies, that has to be found out.
DATAPLANE_BOUND=1.5 CONTROL_BOUND=3.5
# What `takeBackAfter` is here.
BACK=3

mac_of() { at "$1" cat /sys/class/net/eth0/address; }
other() { if [ "$1" = a ]; then echo b; else echo a; fi; }
now() { printf '%s.%s' "${EPOCHREALTIME%[.,]*}" "${EPOCHREALTIME#*[.,]}"; }
log() { "$PYTHON" "$HERE/neighbors.py" "$1" "$WORK/asked" "${@:2}"; }

# holder NODE ADDRESS: who answers for it, as that node sees it.
holder() { status_of "$1" ".control.announcements[] | select(.address == \"$2\") | .node"; }
agreed() { # agreed ADDRESS: all nodes say the same; that is printed
  local node first
  first=$(holder a "$1")
  [ -n "$first" ] && [ "$first" != null ] || return 1
  for node in $NODE_NAMES; do [ "$(holder "$node" "$1")" = "$first" ] || return 1; done
  printf '%s' "$first"
}
held_by() { [ "$(agreed "$1")" = "$2" ]; }
state_of() { overlane_cli "$1" -o json node list | jq -r ".liveness[\"$2\"].liveness"; }
sees() { [ "$(state_of "$1" "$2")" = "$3" ]; }

# who_has ADDRESS: the MACs that answer, each once.
who_has() {
  case $1 in
    *:*) at net ndisc6 -m -n -r 1 -w 1000 "$1" br0 | grep -i 'link-layer' | awk '{ print tolower($NF) }' ;;
    *) at net arping -b -c 2 -w 2 -I br0 "$1" | sed -nE 's/.*reply from .*\[([0-9A-Fa-f:]+)\].*/\L\1/p' ;;
  esac | sort -u | tr '\n' ' '
}
only() { equal "who answers for $1" "$(who_has "$1")" "$(mac_of "$2") "; }

# served: the service answers, from the link and from behind the router, over both families.
served() {
  local from address
  for from in net ext; do
    for address in $VIP4 $VIP6; do get "$from" "http://$(in_url "$address")/" --max-time 2 > /dev/null || return 1; done
  done
}

# unsolicited NODE: its advertisement, to all nodes, that overrides what is known.
unsolicited() {
  local found
  found=$(tshark -n -r "$WORK/pcap" -Y "icmpv6.type == 136 && icmpv6.nd.na.target_address == $VIP6 &&
    icmpv6.nd.na.flag.s == 0 && icmpv6.nd.na.flag.o == 1 && ipv6.dst == ff02::1 && eth.src == $(mac_of "$1")" 2> /dev/null | wc -l)
  at_least "unsolicited advertisements of node $1" "$found" 1
}

# takes_over TITLE NODE SINCE BOUND: NODE answers within that many seconds, says so, and serves.
takes_over() {
  check "$1: node $2 answers in time" wait_until 6 answers_since "$2" "$3"
  printf '# %s: node %s answers after %s s\n' "$1" "$2" "$(log first "$(mac_of "$2")" "$3" || true)"
  check "$1: within $4 s" at_most seconds "$(log first "$(mac_of "$2")" "$3")" "$4"
  check "$1: it is announced by an ARP request and a reply" wait_until 3 announced "$2" "$3"
  check "$1: the service answers again" wait_until 3 served
  check "$1: over IPv6 nobody else answers" wait_until 5 only "$VIP6" "$2"
  check "$1: it has told so" wait_until 5 unsolicited "$2"
  check "$1: all nodes that can say so agree" wait_until 3 sees_holder "$2"
}
answers_since() { log first "$(mac_of "$1")" "$2" > /dev/null; }
announced() { [ "$(log gratuitous "$(mac_of "$1")" "$2")" = "1 2" ]; }
sees_holder() { [ "$(holder "$1" $VIP4)" = "$1" ] && [ "$(holder "$1" $VIP6)" = "$1" ]; }

# returns TITLE NODE SINCE: it takes its address back, not before it was well for a while.
returns() {
  check "$1: node $2 takes it back" wait_until 15 answers_since "$2" "$3"
  check "$1: after $BACK s at least" at_least seconds "$(log first "$(mac_of "$2")" "$3")" "$BACK"
  check "$1: all agree" wait_until 5 held_by $VIP4 "$2"
  check "$1: the service answers" wait_until 3 served
}

# idle NODE: its control process, with membership, takes at most 1 % of a CPU.
idle() {
  local pid from
  pid=$(node_pid control "$1") from=$(cpu_ns "$pid")
  sleep 5
  used=$(awk -v u=$(($(cpu_ns "$pid") - from)) 'BEGIN { printf "%.2f", u / 5e7 }')
  echo "$used" > "$WORK/idle"
  at_most "% of a CPU" "$used" 1
}

# forged: what control of node a says, said again by a pod of node a, which leaves with the node's
# address if at all, is ignored by node b's control.
ignored() { status_of b .control.membership.datagrams.unknown_sender; }
all_ignored() { [ "$(ignored)" = "$1" ]; }
forged() {
  local payload before
  payload=$(at net timeout 5 tcpdump -i br0 -c 1 -U -w - "udp dst port 4254 and src host $(node_ip4 a)" 2> /dev/null |
    tshark -r - -n -T fields -e udp.payload 2> /dev/null)
  [ -n "$payload" ]
  before=$(ignored)
  at a-pod1 "$PYTHON" - "$(node_ip4 b)" "$payload" <<'PYTHON'
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    s.bind(("", 4254))
    for _ in range(5):
        s.sendto(bytes.fromhex(sys.argv[2].replace(":", "")), (sys.argv[1], 4254))
PYTHON
  wait_until 3 all_ignored $((before + 5)) || equal "ignored messages" "$(ignored)" $((before + 5))
  sees b a live
}

# Its backends are on the node that stays.
manifests() {
  { LOAD_BALANCER="$VIP4 $VIP6" service_manifest web 10.96.0.20 fd98::14 80=8080/TCP
    printf -- '---\n'
    slice_manifests web 80=8080/TCP "b=$(pod_ip4 b 1)" "b=$(pod_ip6 b 1)" "b=$(pod_ip4 b 2)" "b=$(pod_ip6 b 2)"
  } | everywhere service-web
}

# Of these addresses one that each node has, so that either can be the one that dies: the first
# that the first node has.
choose() {
  local n
  for ((n = 1; n <= 8; n++)); do
    VIP4=10.0.7.$n VIP6=fd00:10:0:7::$n
    manifests
    wait_until 5 agreed $VIP4 > /dev/null && wait_until 5 agreed $VIP6 > /dev/null || return 1
    [ "$(holder a $VIP4)" != a ] || [ "$(holder a $VIP6)" != a ] || return 0
  done
  return 1
}

# Those that were sent before, or long ago by the receiver's clock.
old_messages() { status_of "$1" '.control.membership.datagrams | .replayed + .stale'; }

bed --announce
KEY=$(od -An -tx1 -N32 /dev/urandom | tr -d ' \n')
for node in $NODE_NAMES; do
  (umask 077 && printf '%s\n' "$KEY" > "$RUN_DIR/$node/membership.key")
  printf 'membership: {takeBackAfter: %s, keyFile: %s}\ngateways: [{name: out, addresses: [%s], nodes: [a, b]}]\n' \
    "$BACK" "$RUN_DIR/$node/membership.key" "$POOL" >> "$RUN_DIR/$node/node.yaml"
  testbed restart-control "$node"
done
web b-pod1
web b-pod2
check "both nodes are live" wait_until 10 sees a b live
check "and see each other" wait_until 10 sees b a live
choose || die "no address of eight is node a's"
check "IPv4: exactly the chosen node answers" only $VIP4 a
check "IPv6: exactly the chosen node answers" only $VIP6 a
check "the gateway's address is at its first node" only $POOL a
check "an address that nobody has is nobody's" equal "who answers" "$(who_has 10.0.7.99)" ""
check "the service answers from the link and from outside" served
check "service list says who answers" equal node "$(overlane_cli b -o json service list | jq -r ".[] | .announced_by[\"$VIP4\"]" | sort -u)" a

check "what nodes say of each other is signed" equal authenticated "$(status_of a .control.membership.authenticated)" true
check "a pod cannot speak for its node" forged
check "keeping track costs little" idle a
printf '# an idle control process takes %s %% of a CPU\n' "$(cat "$WORK/idle")"

start net "$PYTHON" "$HERE/neighbors.py" ask br0 $VIP4 "$WORK/asked"
capture_begin "$WORK/pcap" icmp6

began=$(now)
testbed stop-dataplane a KILL
takes_over "the dataplane dies" b "$began" "$DATAPLANE_BOUND"
check "the dataplane dies: the other node knows why" sees b a not_forwarding
check "the dataplane dies: the gateway has moved too" only $POOL b
began=$(now)
testbed start-dataplane a
wait_until 15 node_ready a
returns "the dataplane is back" a "$began"
check "the dataplane is back: the gateway too" wait_until 5 only $POOL a

began=$(now)
link_in net set "net-a" down
takes_over "the cable is pulled" b "$began" "$CONTROL_BOUND"
check "the cable is pulled: that node knows why" wait_until 3 sees a a not_forwarding
began=$(now)
link_in net set "net-a" up
returns "the cable is back" a "$began"

began=$(now)
testbed stop-control a KILL
takes_over "control dies" b "$began" "$CONTROL_BOUND"
check "control dies: its dataplane stopped before" at_most "seconds" "$(log last "$(mac_of a)" "$began")" "$(log first "$(mac_of b)" "$began")"
check "control dies: the other node says so" sees b a dead
check "control dies: node a still forwards" one_ping a-pod1 "$(pod_ip4 b 1)"
began=$(now)
testbed start-control a
returns "control is back" a "$began"

began=$(now)
testbed stop-control a
check "control ends in order: nobody waits for it" wait_until 3 answers_since b "$began"
check "control ends in order: within 1 s" at_most seconds "$(log first "$(mac_of b)" "$began")" 1
testbed stop-control b
check "without any control nobody answers" wait_until 3 equal "who answers" "$(sleep 1; who_has $VIP4)" ""
testbed start-control b
check "alone it takes what there is" wait_until 10 only $VIP4 b

capture_end
check "never did two answer one question" log twice
testbed start-control a
check "both are live again" wait_until 15 sees b a live
for node in $NODE_NAMES; do
  check "no message was taken for an old one at $node" equal messages "$(old_messages "$node")" 0
  check "counters of $node close" closes "$node"
done
finish
