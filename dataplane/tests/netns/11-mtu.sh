#!/usr/bin/env bash
# The pods' MTU is the underlay's less the overhead; what is larger is refused with the right number.
# shellcheck source=dataplane/tests/netns/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

pod_mtu() { at "$1" cat /sys/class/net/eth0/mtu; }

# says_too_big NAME ADDRESS SIZE MTU: the ping is answered by an error that names this MTU.
says_too_big() {
  local said
  said=$(at "$1" ping -n -c 2 -i 0.3 -W 1 -M "do" -s "$3" "$2" 2>&1 || true)
  grep -Eqi "mtu ?[=:] ?$4" <<< "$said" || { echo "$said"; return 1; }
}

# sizes MODE UNDERLAY MTU
sizes() {
  local title="$1 over IPv$2"
  bed --mode "$1" --underlay "$2"
  check "$title: the pods' MTU is $3" equal MTU "$(pod_mtu a-pod1)" "$3"
  check "$title: the largest IPv4 packet passes" one_ping a-pod1 "$(pod_ip4 b 1)" -M "do" -s $(($3 - 28))
  check "$title: the largest IPv6 packet passes" one_ping a-pod1 "$(pod_ip6 b 1)" -M "do" -s $(($3 - 48))
  check "$title: larger ones pass in fragments, IPv4" one_ping a-pod1 "$(pod_ip4 b 1)" -s 4000
  check "$title: larger ones pass in fragments, IPv6" one_ping a-pod1 "$(pod_ip6 b 1)" -s 4000
  [ "$3" != 1500 ] || return 0
  # A pod that does not keep to its MTU is told.
  link_in a-pod2 set eth0 mtu 1500
  check "$title: one byte more is refused with $3, IPv4" says_too_big a-pod2 "$(pod_ip4 b 1)" $(($3 - 27)) "$3"
  check "$title: one byte more is refused with $3, IPv6" says_too_big a-pod2 "$(pod_ip6 b 1)" $(($3 - 47)) "$3"
}

sizes geneve 4 1450
sizes geneve 6 1430
sizes vxlan 4 1450
sizes native 4 1500
finish
