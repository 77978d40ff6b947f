#!/usr/bin/env bash
# The other node is the kernel's vxlan device: both directions, over IPv4 and over IPv6.
# shellcheck disable=SC2153
# shellcheck source=dataplane/tests/netns/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=dataplane/tests/netns/foreign.sh
. "$HERE/foreign.sh"

# vxlan_device LOCAL REMOTE
vxlan_device() {
  local overhead=50 mac
  [ "$UNDERLAY" = 4 ] || overhead=70
  mac=$(gateway_mac a)
  link_in k add vx0 mtu $((MTU - overhead)) address 02:aa:00:00:00:0b type vxlan id 1 dstport 4789 local "$1" nolearning
  link_in k set vx0 up
  address_in k "$FOREIGN_POD4/32" lo
  address_in k "$FOREIGN_POD6/128" lo
  ip -n ovt-k neigh add 169.254.7.1 lladdr "$mac" dev vx0 nud permanent
  ip -n ovt-k neigh add fe80::7:1 lladdr "$mac" dev vx0 nud permanent
  at k bridge fdb add "$mac" dev vx0 dst "$2"
  route_in k 10.244.1.0/24 via 169.254.7.1 dev vx0 onlink src "$FOREIGN_POD4"
  route6_in k fd12:3456:0:1::/64 via fe80::7:1 dev vx0 src "$FOREIGN_POD6"
}

for underlay in 4 6; do
  bed --mode vxlan --underlay "$underlay" --nodes 1
  foreign_node
  address_in k "$(node_ip4 k)/16" eth0
  address_in k "$(node_ip6 k)/48" eth0
  vxlan_device "$("node_ip$underlay" k)" "$("node_ip$underlay" a)" ||
    skip "this kernel has no vxlan device"
  foreign_manifests 02:aa:00:00:00:0b
  serve k
  serve a-pod1
  talk "kernel vxlan over IPv$underlay"
  check "counters of a close" closes a
  stop_started
done
finish
