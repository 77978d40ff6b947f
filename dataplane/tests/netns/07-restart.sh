#!/usr/bin/env bash
# Either program dies and returns, in either order: traffic goes on, or comes back by itself.
# shellcheck source=dataplane/tests/netns/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# A ping every 10 ms.
start_pings() { start a-pod1 ping -n -i 0.01 -W 1 "$(pod_ip4 b 1)"; PINGS=$STARTED PINGS_LOG=$STARTED_LOG; }
kill_program() { kill -KILL "$(node_pid "$1" "$2")" && wait_until 5 not node_pid "$1" "$2"; }
restart_a() { testbed restart-dataplane a && wait_ready a; }
pings_again() { wait_until 10 at a-pod1 ping -n -c 1 -W 1 "$(pod_ip4 b 1)"; }
pings6_again() { wait_until 10 at a-pod1 ping -n -c 1 -W 1 "$(pod_ip6 b 1)"; }

bed --mode geneve
serve b-pod1
start a-pod1 "$PYTHON" "$HERE/echo.py" session "$(pod_ip4 b 1)" 7000
session=$STARTED session_log=$STARTED_LOG
check "pods talk" pings_again

generation=$(status_of a .generation)
start_pings
check "control is killed" kill_program control a
sleep 1
check "the dataplane goes on without it" one_ping a-pod1 "$(pod_ip6 b 1)"
check "control returns" testbed start-control a
sleep 2
stop_one "$PINGS" INT
check "no ping was lost meanwhile" equal lost "$(lost_pings "$PINGS_LOG")" 0
check "nothing that was right was touched" equal generation "$(status_of a .generation)" "$generation"

check "the dataplane is killed" kill_program dataplane a
check "no packet passes" no_ping a-pod1 "$(pod_ip4 b 1)"
check "the dataplane returns" testbed start-dataplane a
check "the node becomes ready without control's restart" wait_ready a
check "pods talk again" pings_again

check "both die: control" kill_program control a
check "both die: dataplane" kill_program dataplane a
check "control returns first" testbed start-control a
sleep 0.5
check "then the dataplane" testbed start-dataplane a
check "the node becomes ready" wait_ready a
check "pods talk again" pings_again

check "both die: dataplane" kill_program dataplane a
check "both die: control" kill_program control a
check "the dataplane returns first" testbed start-dataplane a
sleep 0.5
check "then control" testbed start-control a
check "the node becomes ready" wait_ready a
check "pods talk again, IPv4" pings_again
check "pods talk again, IPv6" pings6_again

check "a proper stop and start" restart_a
check "pods talk again" pings_again
check "the host reaches its pod again" one_ping a "$(pod_ip4 a 1)"
sleep 3
stop_one "$session"
printf '# session: %s\n' "$(cat "$session_log")"
check "a TCP session between pods outlived all of it" equal error "$(jq -r .error "$session_log")" null
check "counters of a close" closes a
check "counters of b close" closes b
finish
