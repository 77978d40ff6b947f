#!/usr/bin/env bash
# Everyone reaches everyone: ping, TCP and UDP, IPv4 and IPv6, in every mode over both underlays.
# shellcheck source=dataplane/tests/netns/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# reach TITLE FROM ADDRESS...
reach() {
  local title=$1 from=$2 address
  shift 2
  for address in "$@"; do
    check "$title: ping $address" one_ping "$from" "$address"
    check "$title: TCP $address" tcp_echo "$from" "$address"
    check "$title: UDP $address" udp_echo "$from" "$address"
  done
}

matrix() {
  local name
  for name in a b a-pod1 a-pod2 b-pod1; do serve "$name"; done
  check "pod to its gateway: ping 169.254.1.1" one_ping a-pod1 169.254.1.1
  check "pod to its gateway: ping fe80::1" one_ping a-pod1 fe80::1%eth0
  reach "pod to pod, same node" a-pod1 "$(pod_ip4 a 2)" "$(pod_ip6 a 2)"
  reach "pod to pod, other node" a-pod1 "$(pod_ip4 b 1)" "$(pod_ip6 b 1)"
  reach "pod to pod, other way" b-pod2 "$(pod_ip4 a 1)" "$(pod_ip6 a 1)"
  reach "pod to its own host" a-pod1 "$(node_ip4 a)" "$(node_ip6 a)"
  reach "pod to the other host" a-pod1 "$(node_ip4 b)" "$(node_ip6 b)"
  reach "host to its own pod" a "$(pod_ip4 a 1)" "$(pod_ip6 a 1)"
  reach "host to the other's pod" a "$(pod_ip4 b 1)" "$(pod_ip6 b 1)"
  reach "host to host" a "$(node_ip4 b)" "$(node_ip6 b)"
  check "counters of a close" closes a
  check "counters of b close" closes b
}

for options in "geneve 4" "geneve 6" "vxlan 4" "vxlan 6" "native 4" "flat 4"; do
  bed --mode "${options% *}" --underlay "${options#* }"
  matrix
  stop_started
done
finish
