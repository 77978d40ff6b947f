#!/usr/bin/env bash
# Counters close at every moment under load, every packet that is lost has a name, and how long packets
# are inside is known.
# shellcheck source=dataplane/tests/netns/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

received() { endpoints_of a '.. | objects | select(.name? == "default/a-pod2") | .rx_packets'; }

bed --workers 2 --pods 3
start b-pod1 iperf3 -s
wait_until 5 at b-pod1 sh -c 'ss -ltn | grep -q :5201' || die "iperf3 does not listen"
start a-pod1 iperf3 -c "$(pod_ip4 b 1)" -t 5 -P 4
load=$STARTED
for ((i = 0; i < 20; i++)); do
  closes a > "$WORK/open.$i" 2>&1 && closes b >> "$WORK/open.$i" 2>&1 && rm "$WORK/open.$i"
  sleep 0.2
done
check "closed in 20 looks under load" equal "open looks" "$(cat "$WORK"/open.* 2> /dev/null)" ""
wait "$load" || true

# What was inside for how long: packets of a sample, both ways in, and no time that cannot be.
latencies() { overlane_cli a -o json latency "$@" | jq -r "$FILTER"; }
FILTER='[.histograms[] | select(.from == "pods" or .from == "uplink") | select(.packets > 100) | .from] | unique | join(" ")'
check "packets from pods and from the uplink were timed" equal ways "$(latencies)" "pods uplink"
FILTER='[.histograms[] | select(.p50_us <= 0 or .p50_us > .p99_us or .p99_us > .max_us or .max_us > 1e6)] | length'
check "no time is impossible" equal "impossible times" "$(latencies --reset)" 0
FILTER='[.histograms[-1] // {} | .packets // 0] | add'
check "and counting begins anew when told to" at_most packets "$(latencies)" 100
overlane_cli a latency --hgrm "$WORK/hgrm" > "$WORK/latency"
check "percentiles are written for other programs" grep -q '1/(1-Percentile)' "$WORK/hgrm"

before=$(drops_of a no_route)
at a-pod1 ping -n -c 10 -i 0.05 -W 1 10.244.1.99 > "$WORK/pings" 2>&1 || true
check "10 pings to a pod that does not exist are 10 drops 'no_route'" \
  equal drops $(($(drops_of a no_route) - before)) 10
before=$(received)
at a-pod2 ping -n -c 10 -i 0.05 "$(pod_ip4 a 3)" > "$WORK/pings"
received=$(($(received) - before))
check "10 pings count 10 packets from their pod" at_least packets "$received" 10
check "and a neighbour question or two, but no more" at_most packets "$received" 14
check "counters of a close" closes a
check "counters of b close" closes b
finish
