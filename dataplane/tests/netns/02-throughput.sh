#!/usr/bin/env bash
# iperf3 between pods on two nodes, TCP and UDP, both families, veths as they are created.
# shellcheck source=dataplane/tests/netns/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

rate() { jq -r '.end.sum_received.bits_per_second // .end.sum.bits_per_second' "$1"; }
loss() { jq -r '.end.sum.lost_percent' "$1"; }

bed --mode geneve
start b-pod1 iperf3 -s
wait_until 5 at b-pod1 sh -c 'ss -ltn | grep -q :5201' || die "iperf3 does not listen"
for address in "$(pod_ip4 b 1)" "$(pod_ip6 b 1)"; do
  check "TCP to $address runs" iperf a-pod1 "$address" "$WORK/tcp" -t 3
  check "TCP to $address: 100 Mbit/s at least" at_least rate "$(rate "$WORK/tcp")" 100e6
  check "TCP from $address runs" iperf a-pod1 "$address" "$WORK/back" -t 3 -R
  check "TCP from $address: 100 Mbit/s at least" at_least rate "$(rate "$WORK/back")" 100e6
  check "UDP to $address runs" iperf a-pod1 "$address" "$WORK/udp" -t 3 -u -b 50M
  check "UDP to $address: 49 Mbit/s at least" at_least rate "$(rate "$WORK/udp")" 49e6
  check "UDP to $address: 1 % lost at most" at_most loss "$(loss "$WORK/udp")" 1
  printf '# %s: TCP %.0f and back %.0f Mbit/s\n' "$address" \
    "$(rate "$WORK/tcp" | awk '{ print $1 / 1e6 }')" "$(rate "$WORK/back" | awk '{ print $1 / 1e6 }')"
done
# Bulk leaves as few large packets; acknowledgments and datagrams do not.
for node in a b; do
  check "node $node sends segments together" at_least coalesced \
    "$(status_of "$node" '[.workers[].coalesced] | add')" "$(($(status_of "$node" '[.workers[].sent] | add') / 4))"
done
check "counters of a close" closes a
check "counters of b close" closes b
finish
