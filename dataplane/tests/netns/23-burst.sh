#!/usr/bin/env bash
# Dataplanes that send bursts by a BPF program, and by AF_XDP (--transmit): the same packets, in order.
# shellcheck source=dataplane/tests/netns/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

rate() { jq -r '.end.sum_received.bits_per_second // .end.sum.bits_per_second' "$1"; }
sum() { jq -r ".end.sum.$2 // .end.sum_sent.$2" "$1"; }

# traffic WAY: what each way of sending must carry.
traffic() {
  local way=$1 family address
  serve b-pod1
  for family in 4 6; do
    address=$("pod_ip$family" b 1)
    check "$way: ping over IPv$family" one_ping a-pod1 "$address"
    check "$way: a pod of the same node over IPv$family" one_ping a-pod1 "$("pod_ip$family" a 2)"
    check "$way: datagrams come back over IPv$family" udp_echo a-pod1 "$address" 5
    check "$way: a stream of a megabyte comes back as it was over IPv$family" tcp_echo a-pod1 "$address" 1000000
  done
  start b-pod2 iperf3 -s
  wait_until 5 at b-pod2 sh -c 'ss -ltn | grep -q :5201' || die "iperf3 does not listen"
  # Fast enough for bursts, slow enough for two CPUs; iperf3 counts what comes out of order.
  check "$way: datagrams at 50 Mbit/s" iperf a-pod1 "$(pod_ip4 b 2)" "$WORK/udp" -t 4 -u -b 50M -l 1000
  check "$way: 5 % of them lost at most" at_most loss "$(sum "$WORK/udp" lost_percent)" 5
  check "$way: none out of order" equal packets "$(jq -r '[.end.streams[].udp.out_of_order] | add' "$WORK/udp")" 0
  check "$way: TCP runs" iperf a-pod1 "$(pod_ip4 b 2)" "$WORK/tcp" -t 3 -P 4
  check "$way: TCP: 100 Mbit/s at least" at_least rate "$(rate "$WORK/tcp")" 100e6
  check "$way: TCP back runs" iperf a-pod1 "$(pod_ip6 b 2)" "$WORK/back" -t 3 -R
  check "$way: TCP back: 100 Mbit/s at least" at_least rate "$(rate "$WORK/back")" 100e6
  check "$way: counters of a close" closes a
  check "$way: counters of b close" closes b
}

# kernel_drops_of NODE COUNTER; tx_dropped_since BEFORE COUNT: so many more are counted at node a.
kernel_drops_of() { overlane_cli "$1" -o json drops | jq -r ".kernel.$2 // 0"; }
tx_dropped_since() { at_least drops "$(kernel_drops_of a tx_dropped)" $(($1 + $2)); }

# By the program on a kernel where it pays, unless it is told otherwise; by AF_XDP on an older one.
here=af-xdp
[ "$(printf '6.11\n%s\n' "$(uname -r)" | sort -V | head -n 1)" != 6.11 ] || here=program
for way in auto af-xdp; do
  bed --mode geneve --transmit "$way"
  expected=$way
  [ "$way" != auto ] || expected=$here
  for node in a b; do
    check "$way: node $node sends by $expected" equal way "$(status_of "$node" .transmit)" "$expected"
  done
  traffic "$way"
  # What a device does not take is counted there, and nothing else is lost.
  link_in a-pod2 set eth0 down
  before=$(kernel_drops_of a tx_dropped)
  check "$way: pings to a pod that is down are not answered" not at a-pod1 ping -q -n -f -l 100 -c 300 -W 1 "$(pod_ip4 a 2)"
  check "$way: each of them is counted" wait_until 5 tx_dropped_since "$before" 300
  check "$way: another pod still answers" one_ping a-pod1 "$(pod_ip4 b 1)"
  check "$way: counters of a still close" closes a
done
finish

