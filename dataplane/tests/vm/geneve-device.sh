#!/usr/bin/env bash
# The other node is the kernel's geneve device: both directions, over IPv4 and over IPv6, with
# and without outer checksums. The kernel counts what it finds wrong with our packets.
# shellcheck disable=SC2153
# shellcheck source=dataplane/tests/vm/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=dataplane/tests/netns/foreign.sh
. "$HERE/foreign.sh"

VNI=7
MAC=02:aa:00:00:00:0b

# geneve_device VNI CHECKSUM-OPTION...: k's tunnel to a, anew.
geneve_device() {
  local vni=$1 mac overhead=50
  shift
  [ "$UNDERLAY" = 4 ] || overhead=70
  mac=$(gateway_mac a)
  link_in k delete gnv0 2> /dev/null || true
  link_in k add gnv0 mtu $((MTU - overhead)) address "$MAC" type geneve id "$vni" \
    remote "$("node_ip$UNDERLAY" a)" dstport 6081 "$@"
  link_in k set gnv0 up
  ip -n "$(namespace k)" neigh add 169.254.7.1 lladdr "$mac" dev gnv0 nud permanent
  ip -n "$(namespace k)" neigh add fe80::7:1 lladdr "$mac" dev gnv0 nud permanent
  route_in k 10.244.1.0/24 via 169.254.7.1 dev gnv0 onlink src "$FOREIGN_POD4"
  route6_in k fd12:3456:0:1::/64 via fe80::7:1 dev gnv0 src "$FOREIGN_POD6"
}

# kernel_found_nothing: neither the tunnel's device nor UDP refused one of our packets.
kernel_found_nothing() {
  local name
  for name in rx_errors rx_dropped rx_frame_errors tx_errors; do
    equal "gnv0's $name" "$(at k cat "/sys/class/net/gnv0/statistics/$name")" 0
  done
  for name in UdpInCsumErrors Udp6InCsumErrors TcpInCsumErrors Icmp6InCsumErrors IcmpInCsumErrors; do
    equal "$name of k" "$(at k nstat -asz "$name" | awk -v name="$name" '$1 == name { print $2 }')" 0
  done
}

# largest TITLE: the largest packet that the tunnel carries, not one byte less, both ways.
largest() {
  local mtu=1450
  [ "$UNDERLAY" = 4 ] || mtu=1430
  check "$1: the largest packet, out, IPv4" one_ping a-pod1 "$FOREIGN_POD4" -M "do" -s $((mtu - 28))
  check "$1: the largest packet, out, IPv6" one_ping a-pod1 "$FOREIGN_POD6" -M "do" -s $((mtu - 48))
  check "$1: the largest packet, in, IPv4" one_ping k "$(pod_ip4 a 1)" -I "$FOREIGN_POD4" -M "do" -s $((mtu - 28))
  check "$1: the largest packet, in, IPv6" one_ping k "$(pod_ip6 a 1)" -I "$FOREIGN_POD6" -M "do" -s $((mtu - 48))
}

# conversation TITLE: all that must work with a device that is set up as the peer is told.
conversation() {
  talk "$1"
  check "$1: in, UDP IPv4" udp_echo k "$(pod_ip4 a 1)"
  check "$1: in, UDP IPv6" udp_echo k "$(pod_ip6 a 1)"
  largest "$1"
  check "$1: the kernel found nothing wrong" kernel_found_nothing
}

# refused TITLE REASON: k's pings are dropped, and for that reason.
refused() {
  local before
  before=$(drops_of a "$2")
  check "$1: nothing passes, IPv4" no_ping k "$(pod_ip4 a 1)" -I "$FOREIGN_POD4"
  check "$1: nothing passes, IPv6" no_ping k "$(pod_ip6 a 1)" -I "$FOREIGN_POD6"
  check "$1: the drops are called $2" at_least drops "$(drops_of a "$2")" $((before + 2))
}

modprobe geneve 2> /dev/null || skip "kernel $(uname -r) has no geneve device"
printf '# kernel %s\n' "$(uname -r)"

for underlay in 4 6; do
  patient_bed --mode geneve --underlay "$underlay" --nodes 1 --pods 1 --vni "$VNI"
  foreign_node
  address_in k "$(node_ip4 k)/16" eth0
  address_in k "$(node_ip6 k)/48" eth0
  address_in k "$FOREIGN_POD4/32" lo
  address_in k "$FOREIGN_POD6/128" lo
  geneve_device "$VNI" udpcsum
  foreign_manifests "$MAC"
  serve k
  serve a-pod1
  if [ "$underlay" = 4 ]; then
    conversation "over IPv4, checksums"
    geneve_device "$VNI" noudpcsum
    conversation "over IPv4, no checksums"
  else
    geneve_device "$VNI"
    conversation "over IPv6"
    geneve_device "$VNI" udp6zerocsumtx
    refused "over IPv6, no checksums" outer_zero_udp_checksum_v6
  fi
  geneve_device $((VNI + 1))
  refused "over IPv$underlay, a foreign VNI" tunnel_unknown_vni
  check "over IPv$underlay: no complaints" nothing_warned a
  check "over IPv$underlay: counters of a close" closes a
  stop_started
done
check "the kernel has no complaints" no_kernel_complaints
finish
