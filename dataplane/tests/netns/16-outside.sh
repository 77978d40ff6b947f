#!/usr/bin/env bash
# Pods reach the outside by their node's own routes. It sees nodes' addresses only, but in flat
# mode, whose pods have addresses of the underlay; and no route takes an address from the cluster.
# shellcheck source=dataplane/tests/netns/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

reaches_outside() { # reaches_outside POD: by ping, TCP and UDP
  local address
  for address in "$EXT4" "$EXT6"; do
    one_ping "$1" "$address" && tcp_echo "$1" "$address" && udp_echo "$1" "$address" || return 1
  done
}
sources() { # sources EXPRESSION: who sent what the outside saw
  tcpdump -Z root -nr "$WORK/ext.pcap" "$1" 2> /dev/null | awk '{ print $3 }' |
    sed -E 's/^([0-9]+(\.[0-9]+){3}).*/\1/; s/^([0-9a-f:]+)(\.[0-9]+)?$/\1/' | sort -u | tr '\n' ' '
}
named_drop() { # named_drop ADDRESS: the packet has no route, and the sender is told
  local before
  before=$(drops_of a no_route)
  no_ping a-pod1 "$1" || return 1
  at_least drops $(($(drops_of a no_route) - before)) 1
}

for mode in geneve native flat; do
  bed --mode "$mode"
  serve ext
  start ext tcpdump --immediate-mode -Z root -ni eth0 -U -w "$WORK/ext.pcap" tcp or udp or icmp
  tcpdump=$STARTED
  wait_until 5 test -s "$WORK/ext.pcap" || die "tcpdump did not start"
  check "$mode: a pod reaches the outside" reaches_outside a-pod1
  check "$mode: so does one of another node" reaches_outside b-pod2
  check "$mode: the router on the link answers too" one_ping a-pod1 "$ROUTER4"
  check "$mode: on IPv6 as well" one_ping a-pod1 "$ROUTER6"
  stop_one "$tcpdump" INT
  if [ "$mode" = flat ]; then
    wanted4="$(pod_ip4 a 1) $(pod_ip4 b 2) " wanted6="$(pod_ip6 a 1) $(pod_ip6 b 2) "
  else
    wanted4="$(node_ip4 a) $(node_ip4 b) " wanted6="$(node_ip6 a) $(node_ip6 b) "
    check "$mode: an address that no pod has is nowhere" named_drop 10.244.200.1
    check "$mode: on IPv6 as well" named_drop fd12:3456:0:77::1
  fi
  check "$mode: who the outside saw" equal sources "$(sources "ip and dst host $EXT4")" "$wanted4"
  check "$mode: on IPv6 as well" equal sources "$(sources "ip6 and dst host $EXT6")" "$wanted6"

  at a ip route del default
  check "$mode: the node's route goes, and so does the way" \
    wait_until 5 no_ping a-pod1 "$EXT4"
  check "$mode: the other family has its own" one_ping a-pod1 "$EXT6"
  at a ip route add default via "$ROUTER4"
  check "$mode: it is back" wait_until 5 one_ping a-pod1 "$EXT4"
  check "$mode: pods talk" one_ping a-pod1 "$(pod_ip4 b 1)"
  check "$mode: counters of a close" closes a
  testbed down > "$WORK/down" 2>&1
  stop_started
done
finish
