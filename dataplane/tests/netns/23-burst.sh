#!/usr/bin/env bash
# Dataplanes that send by a BPF program (--transmit program): the same packets as by AF_XDP, in order.
# shellcheck source=dataplane/tests/netns/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

rate() { jq -r '.end.sum_received.bits_per_second // .end.sum.bits_per_second' "$1"; }
sum() { jq -r ".end.sum.$2 // .end.sum_sent.$2" "$1"; }

bed --mode geneve --transmit program
for node in a b; do
  check "node $node sends by the program" grep -q 'transmit program' <(tr '\0' ' ' < "/proc/$(node_pid dataplane "$node")/cmdline")
done
serve b-pod1
for family in 4 6; do
  address=$("pod_ip$family" b 1)
  check "ping over IPv$family" one_ping a-pod1 "$address"
  check "a pod of the same node over IPv$family" one_ping a-pod1 "$("pod_ip$family" a 2)"
  check "datagrams come back over IPv$family" udp_echo a-pod1 "$address" 5
  check "a stream of a megabyte comes back as it was over IPv$family" tcp_echo a-pod1 "$address" 1000000
done
start b-pod2 iperf3 -s
wait_until 5 at b-pod2 sh -c 'ss -ltn | grep -q :5201' || die "iperf3 does not listen"
# Fast enough for bursts, slow enough for two CPUs; iperf3 counts what comes out of order.
check "datagrams at 100 Mbit/s" iperf a-pod1 "$(pod_ip4 b 2)" "$WORK/udp" -t 4 -u -b 100M -l 1000
check "2 % of them lost at most" at_most loss "$(sum "$WORK/udp" lost_percent)" 2
check "none out of order" equal packets "$(jq -r '[.end.streams[].udp.out_of_order] | add' "$WORK/udp")" 0
check "TCP runs" iperf a-pod1 "$(pod_ip4 b 2)" "$WORK/tcp" -t 3 -P 4
check "TCP: 100 Mbit/s at least" at_least rate "$(rate "$WORK/tcp")" 100e6
check "TCP back runs" iperf a-pod1 "$(pod_ip6 b 2)" "$WORK/back" -t 3 -R
check "TCP back: 100 Mbit/s at least" at_least rate "$(rate "$WORK/back")" 100e6
check "counters of a close" closes a
check "counters of b close" closes b
finish
