#!/usr/bin/env bash
# A pod switches its offloads back on: its unfinished checksums are finished here, and counted.
# shellcheck source=dataplane/tests/netns/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

finished() { endpoints_of a '.. | objects | select(.name? == "default/a-pod1") | .checksums_finished'; }
features() { at a-pod1 ethtool -k eth0 | awk -v name="$1:" '$1 == name { print $2 }'; }

bed --pods 2
serve b-pod1
serve a-pod2
start b-pod1 iperf3 -s
check "the pod's checksum offload is off" equal tx "$(features tx-checksumming)" off
check "that is told" at_least features "$(endpoints_of a '.. | objects | select(.name? == "default/a-pod1") | .offloads_off | length')" 1
check "TCP works, IPv4" tcp_echo a-pod1 "$(pod_ip4 b 1)"
check "nothing had to be finished" equal checksums "$(sleep 0.3; finished)" 0

check "the pod switches everything on" at a-pod1 sh -c 'ethtool -K eth0 tx on sg on gso on tso on; true'
check "it is on" equal tx "$(features tx-checksumming)" on
for address in "$(pod_ip4 b 1)" "$(pod_ip6 b 1)" "$(pod_ip4 a 2)" "$(pod_ip6 a 2)"; do
  before=$(finished)
  check "TCP to $address still works" tcp_echo a-pod1 "$address" 500000
  check "UDP to $address still works" udp_echo a-pod1 "$address" 30
  sleep 0.3
  check "its checksums were finished here" at_least checksums $(($(finished) - before)) 50
done
check "iperf3 over it" iperf a-pod1 "$(pod_ip4 b 1)" "$WORK/tcp" -t 2
printf '# TCP with checksums finished in software: %.0f Mbit/s\n' "$(jq '.end.sum_received.bits_per_second / 1e6' "$WORK/tcp")"
check "100 Mbit/s at least" at_least rate "$(jq .end.sum_received.bits_per_second "$WORK/tcp")" 100e6
check "UDP too long for one packet" udp_echo a-pod1 "$(pod_ip4 b 1)" 5
check "counters of a close" closes a
finish
