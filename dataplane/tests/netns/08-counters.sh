#!/usr/bin/env bash
# Counters close at every moment under load, and every packet that is lost has a name.
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
