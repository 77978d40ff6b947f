#!/usr/bin/env bash
# The node's own address answers from outside at every moment: before, under load, when the
# dataplane is killed, when it is back. And it is back at once.
# shellcheck source=dataplane/tests/netns/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

kill_dataplane() { kill -KILL "$(node_pid dataplane a)" && wait_until 5 not node_pid dataplane a; }
talks() { at a-pod1 ping -n -c 1 -W 1 "$(pod_ip4 b 1)"; }
no_xdp_left() { not grep -q xdp <<< "$(ip -n "$(namespace a)" -d link show)"; }
xsk_count() { at a awk '$1 == "XDP" { print $3 }' /proc/net/protocols; }
no_xsk_left() { equal "AF_XDP sockets" "$(xsk_count)" 0; }
arps() { at net sh -c "ip neigh flush dev br0 && ping -n -c 1 -W 1 $(node_ip4 a)"; }
solicits() { at net sh -c "ip -6 neigh flush dev br0 && ping -n -c 1 -W 1 $(node_ip6 a)"; }
answered() { awk '/packets transmitted/ { print $4 }' "$1"; }
socket_count() { status_of a '.ports | length'; }
now_ms() { printf '%d' $((${EPOCHREALTIME/./} / 1000)); }

bed --workers 2 --pods 2 --no-processes
serve a
start ext "$PYTHON" "$HERE/echo.py" session "$(node_ip4 a)" 7000
session4=$STARTED log4=$STARTED_LOG
start ext "$PYTHON" "$HERE/echo.py" session "$(node_ip6 a)" 7000
session6=$STARTED log6=$STARTED_LOG
start ext ping -n -i 0.02 -W 1 "$(node_ip4 a)"
ping4=$STARTED ping4_log=$STARTED_LOG
start net ping -n -i 0.02 -W 1 "$(node_ip6 a)"
ping6=$STARTED ping6_log=$STARTED_LOG

for node in a b; do testbed start-dataplane "$node" && testbed start-control "$node"; done
check "both nodes become ready" wait_ready a b
check "pods talk" wait_until 5 talks
ports=$(socket_count)
start b-pod1 iperf3 -s
wait_until 5 at b-pod1 sh -c 'ss -ltn | grep -q :5201' || die "iperf3 does not listen"
start a-pod2 iperf3 -c "$(pod_ip4 b 1)" -t 60 -P 4
load=$STARTED
sleep 1
check "under load: the node is asked for by ARP" arps
check "under load: and by neighbour solicitation" solicits

for round in 1 2 3; do
  check "kill $round: it is gone" kill_dataplane
  check "kill $round: the node answers at once" at ext ping -n -c 1 -W 1 "$(node_ip4 a)"
  check "kill $round: by ARP too" arps
  check "kill $round: no XDP program is left" wait_until 1 no_xdp_left
  check "kill $round: no AF_XDP socket is left" wait_until 1 no_xsk_left
  began=$(now_ms)
  check "kill $round: it starts again at once" testbed start-dataplane a
  check "kill $round: pods talk within 2 s" wait_until 2 talks
  printf '# kill %d: pods talked %d ms after the restart\n' "$round" $(($(now_ms) - began))
  check "kill $round: everything is ready" wait_ready a
  check "kill $round: as many ports as before" equal ports "$(socket_count)" "$ports"
  check "kill $round: and sockets" equal sockets "$(xsk_count)" "$ports"
done
# No pause at all: the dead one's sockets and programs are still being taken away.
wait_until 5 node_pid dataplane a > /dev/null
kill -KILL "$(node_pid dataplane a)"
check "restarted in the same moment" testbed restart-dataplane a
check "pods talk within 2 s" wait_until 2 talks
check "nothing waits" wait_until 5 equal warnings "$(status_of a '.warnings | length')" 0

# An overfull ring may lose a ping; control must not.
kill "$load" 2> /dev/null || true
# While control is away nothing is missed, and a pod that came meanwhile works when it is back.
start a-pod1 ping -n -i 0.02 -W 1 "$(pod_ip4 b 2)"
pings=$STARTED pings_log=$STARTED_LOG
check "control dies and returns" testbed restart-control a
wait_until 5 node_pid control a > /dev/null
kill -KILL "$(node_pid control a)"
sleep 1
check "control returns" testbed start-control a
sleep 2
stop_one "$pings" INT
check "pods lost no ping meanwhile" equal lost "$(lost_pings "$pings_log")" 0

check "the dataplane stops" testbed stop-dataplane a
check "no XDP program is left" no_xdp_left
check "the node still answers" at ext ping -n -c 1 -W 1 "$(node_ip6 a)"
stop_one "$ping4" INT
stop_one "$ping6" INT
stop_one "$session4"
stop_one "$session6"
printf '# IPv4 pings lost: %s of %s; IPv6: %s of %s\n' "$(lost_pings "$ping4_log")" "$(answered "$ping4_log")" \
  "$(lost_pings "$ping6_log")" "$(answered "$ping6_log")"
# Making a program native on a veth restarts its queues: a packet on its way may get lost then.
check "the node missed 5 IPv4 pings of all at most" at_most lost "$(lost_pings "$ping4_log")" 5
check "the node missed 5 IPv6 pings of all at most" at_most lost "$(lost_pings "$ping6_log")" 5
for log in "$log4" "$log6"; do
  printf '# session: %s\n' "$(cat "$log")"
  check "the TCP session was never broken" equal error "$(jq -r .error "$log")" null
  check "and went on all the time" at_least lines "$(jq -r .lines "$log")" 200
  check "and never waited for more than 1.5 s" at_most gap "$(jq -r .longest_gap_ms "$log")" 1500
done
finish
