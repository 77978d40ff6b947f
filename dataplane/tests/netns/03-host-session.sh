#!/usr/bin/env bash
# A TCP session from outside to a node's own address (ssh, say) survives start, load and stop.
# shellcheck source=dataplane/tests/netns/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

start_both() { for node in a b; do testbed start-dataplane "$node" && testbed start-control "$node"; done; }
restart_a() { testbed start-dataplane a && testbed start-control a && wait_ready a; }
no_xdp_left() { not grep -q xdp <<< "$(ip -n ovt-a -d link show eth0)"; }
kill_a() { kill -KILL "$(node_pid dataplane a)"; }

bed --no-processes
serve a
start ext "$PYTHON" "$HERE/echo.py" session "$(node_ip4 a)" 7000
session4=$STARTED log4=$STARTED_LOG
start ext "$PYTHON" "$HERE/echo.py" session "$(node_ip6 a)" 7000
session6=$STARTED log6=$STARTED_LOG
sleep 1

check "the programs start" start_both
check "both nodes become ready" wait_ready a b
start b-pod1 iperf3 -s
sleep 0.5
check "load: iperf3 between pods" iperf a-pod1 "$(pod_ip4 b 1)" "$WORK/tcp" -t 3
check "control stops" testbed stop-control a
check "the dataplane stops" testbed stop-dataplane a
check "no XDP program is left on the uplink" no_xdp_left
check "the host port is gone" not ip -n ovt-a link show overlane0
sleep 1
check "it starts again" restart_a
check "the dataplane is killed" kill_a
sleep 1
stop_one "$session4"
stop_one "$session6"
for log in "$log4" "$log6"; do
  printf '# %s\n' "$(cat "$log")"
  check "the session was never broken" equal error "$(jq -r .error "$log")" null
  check "it went on all the time" at_least lines "$(jq -r .lines "$log")" 100
  check "and never waited for more than 1.5 s" at_most gap "$(jq -r .longest_gap_ms "$log")" 1500
done
finish
