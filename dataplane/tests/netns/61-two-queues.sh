#!/usr/bin/env bash
# Two workers, two uplink queues: a flow's packets arrive at whichever worker the network chose,
# and reach the pod through its home.
# shellcheck source=dataplane/tests/netns/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# A veth's receive queue is its peer's transmit queue. The underlay's bridge makes that choice by
# a hash of the flow, unless the packet comes from a processor of one queue's (XPS).
uplink_rx() { status_of "$1" "[.ports[] | select(.kind == \"uplink\" and .queue == $2) | .rx_packets] | add // 0"; }
handed_over() { status_of "$1" '[.workers[].handed_over] | add'; }
home_of() { endpoints_of "$1" ".. | objects | select(.name? == \"default/$1-pod$2\") | .worker"; }
# only_queue QUEUE: all frames to node b leave the bridge by this queue.
only_queue() {
  local queue all
  all=$(printf '%x' $(((1 << $(nproc)) - 1)))
  for queue in 0 1; do
    # `ip netns exec` shows the namespace's own devices in /sys.
    at net sh -c "echo $([ "$queue" = "$1" ] && echo "$all" || echo 0) > /sys/class/net/net-b/queues/tx-$queue/xps_cpus" || return 1
  done
}

bed --workers 2 --pods 2 --polling adaptive
check "the two pods of b have two homes" not equal homes "$(home_of b 1)" "$(home_of b 2)"
for pod in 1 2; do serve "b-pod$pod"; done
start b-pod1 iperf3 -s
wait_until 5 at b-pod1 sh -c 'ss -ltn | grep -q :5201' || die "iperf3 does not listen"

# Many flows: the hash spreads them.
before0=$(uplink_rx b 0) before1=$(uplink_rx b 1) handed=$(handed_over b)
for _ in $(seq 12); do
  for pod in 1 2; do
    check "TCP to b-pod$pod, IPv4" tcp_echo a-pod1 "$(pod_ip4 b "$pod")" 30000
    check "TCP to b-pod$pod, IPv6" tcp_echo a-pod2 "$(pod_ip6 b "$pod")" 30000
    check "UDP to b-pod$pod" udp_echo a-pod1 "$(pod_ip4 b "$pod")" 10
  done
done
sleep 0.3
check "queue 0 of b's uplink received" at_least packets $(($(uplink_rx b 0) - before0)) 50
check "queue 1 of b's uplink received" at_least packets $(($(uplink_rx b 1) - before1)) 50
check "packets were handed to the other worker" at_least packets $(($(handed_over b) - handed)) 50
printf '# b: queue 0 %d, queue 1 %d, handed over %d\n' \
  $(($(uplink_rx b 0) - before0)) $(($(uplink_rx b 1) - before1)) $(($(handed_over b) - handed))

# Everything on one queue: one of the pods is always at the wrong worker, and gets all the same.
for queue in 0 1; do
  if ! only_queue "$queue" 2> "$WORK/xps"; then
    printf '# this kernel has no XPS on veths: %s\n' "$(cat "$WORK/xps")"
    break
  fi
  other=$((1 - queue))
  before=$(uplink_rx b "$queue") wrong=$(uplink_rx b "$other") handed=$(handed_over b)
  for pod in 1 2; do
    check "all on queue $queue: TCP to b-pod$pod" tcp_echo a-pod1 "$(pod_ip4 b "$pod")"
    check "all on queue $queue: UDP to b-pod$pod, IPv6" udp_echo a-pod1 "$(pod_ip6 b "$pod")"
  done
  sleep 0.3
  check "queue $queue received it all" at_least packets $(($(uplink_rx b "$queue") - before)) 100
  check "queue $other received next to nothing" at_most packets $(($(uplink_rx b "$other") - wrong)) 20
  check "about half was handed over" at_least packets $(($(handed_over b) - handed)) 50
done
check "load in both directions at once" iperf a-pod1 "$(pod_ip4 b 1)" "$WORK/tcp" -t 3 -P 4 --bidir
printf '# 4 flows each way: %.0f and %.0f Mbit/s\n' \
  "$(jq '.end.sum_received.bits_per_second / 1e6' "$WORK/tcp")" \
  "$(jq '.end.sum_received_bidir_reverse.bits_per_second / 1e6' "$WORK/tcp")"
check "at the same pods' home: local pods of two homes" tcp_echo b-pod1 "$(pod_ip4 b 2)"
sleep 0.5
for node in a b; do
  check "counters of $node close" closes "$node"
  check "no frame went to a full lane of $node" equal drops "$(drops_of "$node" handoff_full)" 0
done
finish
