#!/usr/bin/env bash
# Interfaces go down, go away and come back under the same name: whoever waits for them is
# attached again, and nobody else notices.
# shellcheck source=dataplane/tests/netns/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

talks() { at a-pod1 ping -n -c 1 -W 1 "$(pod_ip4 b 1)"; }
talks6() { at a-pod1 ping -n -c 1 -W 1 "$(pod_ip6 b 1)"; }
others_talk() { at a-pod2 ping -n -c 1 -W 1 "$(pod_ip4 b 1)"; }
state_of_pod() { endpoints_of a ".. | objects | select(.name? == \"default/a-pod$1\") | .state"; }
is_ready() { equal "state of a-pod$1" "$(state_of_pod "$1")" ready; }
unready() { not is_ready "$1"; }
said() { status_of a '.warnings[]' | grep -q "$1"; }
quiet() { equal warnings "$(status_of a '.warnings | join("; ")')" ""; }
make_pod1() { # the namespace is there: only the veth is made again
  link_in a add pod1 type veth peer name eth0 netns "$(namespace a-pod1)"
  link_in a set pod1 addrgenmode none
  "$@"
  link_in a set pod1 up
  link_in a-pod1 set eth0 up
  address_in a-pod1 "$(pod_ip4 a 1)/32" eth0
  address_in a-pod1 "$(pod_ip6 a 1)/128" eth0
  route_in a-pod1 default via 169.254.1.1 dev eth0 onlink
  route6_in a-pod1 default via fe80::1 dev eth0
}
make_uplink() {
  link_in net add net-a mtu "$MTU" type veth peer name eth0 mtu "$MTU" netns "$(namespace a)"
  like_a_cable net net-a
  link_in net set net-a master br0 up
  like_a_cable a eth0
  "$@"
  link_in a set eth0 up
  address_in a "$(node_ip4 a)/16" eth0
  address_in a "$(node_ip6 a)/48" eth0
  route_in a default via "$ROUTER4"
  route6_in a default via "$ROUTER6"
}
now_ms() { printf '%d' $((${EPOCHREALTIME/./} / 1000)); }

bed --pods 3
check "pods talk" wait_until 5 talks
start a-pod3 ping -n -i 0.02 -W 1 "$(pod_ip4 b 2)"
pings=$STARTED pings_log=$STARTED_LOG

check "a pod's veth is deleted" link_in a delete pod1
check "its endpoint is not ready" wait_until 3 unready 1
check "and that is said" said pod1
began=$(now_ms)
check "it is made again under the same name" make_pod1 :
check "it is ready within 3 s" wait_until 3 is_ready 1
check "and talks, IPv4" wait_until 2 talks
printf '# %d ms from the making to the first answer\n' $(($(now_ms) - began))
check "and talks, IPv6" wait_until 2 talks6
check "and is reached" wait_until 2 one_ping b-pod1 "$(pod_ip4 a 1)"
check "deleted and made again in one go" eval 'link_in a delete pod1 && make_pod1 :'
check "it is ready within 3 s" wait_until 3 is_ready 1
check "and talks" wait_until 2 talks

check "deleted again" link_in a delete pod1
check "made, and up only after a second" make_pod1 sleep 1
check "it is ready within 3 s" wait_until 3 is_ready 1
check "and talks" wait_until 2 talks
check "a pod's veth goes down" link_in a set pod1 down
check "that is said" wait_until 3 unready 1
check "and up again" link_in a set pod1 up
check "it is ready" wait_until 3 is_ready 1
check "and talks" wait_until 2 talks
check "another MAC in the pod" at a-pod1 sh -c 'ip link set eth0 down && ip link set eth0 address 02:00:00:00:00:77 && ip link set eth0 up && ip route add default via 169.254.1.1 dev eth0 onlink'
check "it talks with the new MAC" wait_until 5 talks
check "and is reached" wait_until 5 one_ping b-pod1 "$(pod_ip4 a 1)"
stop_one "$pings" INT
check "another pod lost no ping meanwhile" equal lost "$(lost_pings "$pings_log")" 0

check "the host port is deleted" link_in a delete overlane0
check "it is made again" wait_until 3 link_in a show overlane0
check "and the host reaches its pod" wait_until 3 one_ping a "$(pod_ip4 a 1)"

check "the uplink goes down" link_in a set eth0 down
sleep 1
check "and up again" link_in a set eth0 up
check "its default routes are put back" eval "route_in a default via $ROUTER4; at a ip -6 address add $(node_ip6 a)/48 dev eth0 nodad 2> /dev/null; true"
check "pods talk again within 3 s" wait_until 3 talks
check "the uplink gets another MAC" eval 'link_in a set eth0 down && link_in a set eth0 address 02:00:00:00:00:78 && link_in a set eth0 up'
check "pods talk again within 5 s" wait_until 5 talks

check "the uplink is deleted" link_in a delete eth0
check "that is said" wait_until 3 said eth0
check "pods on the node still talk" one_ping a-pod1 "$(pod_ip4 a 2)"
check "it is made again, and up only after a second" make_uplink sleep 1
check "pods talk within 5 s" wait_until 5 talks
check "others too" wait_until 2 others_talk
check "it is made again in one go" eval 'link_in a delete eth0 && make_uplink :'
check "pods talk within 5 s" wait_until 5 talks
check "the node itself answers" one_ping net "$(node_ip4 a)"
check "no warning stays" wait_until 3 quiet
check "counters of a close" closes a

# In flat mode a pod's packets to a host leave with the uplink's MAC, whoever the host is.
sends_from() { at net timeout 2 tcpdump -Z root -nc 1 -i net-a "ether src $1 and icmp and host $(pod_ip4 a 1)"; }
bed --mode flat
check "flat: a pod reaches a host" wait_until 5 one_ping a-pod1 "$ROUTER4"
start a-pod1 ping -n -i 0.1 -W 1 "$ROUTER4"
check "flat: the uplink gets another MAC" link_in a set eth0 address 02:00:00:00:00:79
check "flat: the pod's packets to the host leave with it" wait_until 5 sends_from 02:00:00:00:00:79
check "flat: and are answered" wait_until 5 one_ping a-pod1 "$ROUTER4"
finish
