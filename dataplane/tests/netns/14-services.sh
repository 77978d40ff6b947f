#!/usr/bin/env bash
# Pods and hosts reach services by their cluster address: every backend, no other, and only by names the network knows.
# shellcheck source=dataplane/tests/netns/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

PORTS=("80=8080/TCP" "7000=7000/TCP" "7000=7000/UDP")
VIP4=10.96.1.1 VIP6=fd98::101
EMPTY4=10.96.1.2 EMPTY6=fd98::102
API4=10.96.0.1 API6=fd98::1

# backends NAME=POD...: these pods are the endpoints of the service `web`.
backends() {
  local pod endpoints=()
  for pod in "$@"; do
    endpoints+=("${pod%%-*}=$(pod_ip4 "${pod%%-*}" "${pod#*-pod}")" "${pod%%-*}=$(pod_ip6 "${pod%%-*}" "${pod#*-pod}")")
  done
  slice_manifests web "${PORTS[*]}" "${endpoints[@]}" | everywhere slices-web
}

manifests() {
  service_manifest web $VIP4 $VIP6 "${PORTS[@]}" | everywhere service-web
  backends a-pod2 b-pod1
  service_manifest empty $EMPTY4 $EMPTY6 "${PORTS[@]}" | everywhere service-empty
  # Like the API server: not a pod, but a program of the hosts.
  service_manifest kubernetes $API4 $API6 443=6443/TCP | everywhere service-kubernetes
  slice_manifests kubernetes 443=6443/TCP "b=$(node_ip4 b)" "b=$(node_ip6 b)" | everywhere slices-kubernetes
}

answers() { get "$1" "$2" > /dev/null 2>&1; }
# asked NAME URL COUNT: who answered, each with how often: "a-pod2 17 b-pod1 23 ".
asked() {
  local i
  for ((i = 0; i < $3; i++)); do get "$1" "$2" || return 1; done > "$WORK/answers"
  awk '{ n[$1]++ } END { for (who in n) print who, n[who] }' "$WORK/answers" | sort | tr '\n' ' '
}
# spread NAME URL: 40 requests, and each of the two backends got its part of them. A fair coin
# shows one side less than 6 times in one of a million runs.
spread() {
  local said
  said=$(asked "$1" "$2" 40) || return 1
  printf '%s\n' "$said"
  [[ $said =~ ^a-pod2\ ([0-9]+)\ b-pod1\ ([0-9]+)\ $ ]] || return 1
  [ "${BASH_REMATCH[1]}" -ge 6 ] && [ "${BASH_REMATCH[2]}" -ge 6 ] && [ $((BASH_REMATCH[1] + BASH_REMATCH[2])) = 40 ]
}
only() {
  local said
  said=$(asked "$1" "$2" 20) || return 1
  equal "who answered $1" "$said" "$3 20 "
}

# removal TITLE URL-OF-THE-VIP: the backend of a running transfer is taken away.
removal() {
  local title=$1 vip=$2 transfer stays=a-pod2
  : > "$WORK/web.b-pod1"
  start a-pod1 curl -sS -g --max-time 20 -o /dev/null -w '%{http_code} %{size_download}' "$vip/stream/5"
  transfer=$STARTED
  local log=$STARTED_LOG
  sleep 1
  grep -q stream "$WORK/web.b-pod1" || stays=b-pod1
  backends "$stays"
  check "$title: without one backend, new connections get the other" wait_until 3 only a-pod1 "$vip/" "$stays"
  check "$title: the transfer is still on while that is so" kill -0 "$transfer"
  wait "$transfer" || true
  check "$title: and it ends complete" equal transfer "$(cat "$log")" "200 $((5 << 20))"
  backends a-pod2 b-pod1
  check "$title: the backend returns" wait_until 3 spread a-pod1 "$vip/"
}

# services MODE UNDERLAY FAMILY
services() {
  local title="$1 over IPv$2, IPv$3" v=VIP$3 e=EMPTY$3 k=API$3 ip=pod_ip$3 node=node_ip$3 name vip unassigned
  vip=http://$(in_url "${!v}")
  case $3 in 4) unassigned=10.96.200.200 ;; 6) unassigned=fd98::dead ;; esac
  bed --mode "$1" --underlay "$2"
  for name in a-pod2 b-pod1; do web "$name"; serve "$name"; done
  web b 6443
  capture_begin "$WORK/pcap"
  manifests
  check "$title: the service is live within 3 s" wait_until 3 answers a-pod1 "$vip/"
  : > "$WORK/web.a-pod2"
  : > "$WORK/web.b-pod1"
  check "$title: 40 requests reach both backends" spread a-pod1 "$vip/"
  for name in a-pod2 b-pod1; do
    check "$title: $name saw the client's own address" equal clients "$(clients "$name")" "$($ip a 1) "
  done
  check "$title: from the other node too" spread b-pod2 "$vip/"
  check "$title: TCP, byte by byte" tcp_echo a-pod1 "${!v}"
  check "$title: UDP" udp_echo a-pod1 "${!v}"
  check "$title: UDP from the other node" udp_echo b-pod2 "${!v}"
  check "$title: ping" one_ping a-pod1 "${!v}"
  : > "$WORK/web.a-pod2"
  check "$title: a backend asks its own service and gets both, itself too" spread a-pod2 "$vip/"
  check "$title: and does not see itself as the client" not grep -q "$($ip a 2) " "$WORK/web.a-pod2"
  check "$title: a backend with UDP" udp_echo a-pod2 "${!v}"
  check "$title: pods are still reached by their own addresses" tcp_echo a-pod1 "$($ip b 1)"
  check "$title: without endpoints TCP is refused at once" refused a-pod1 "http://$(in_url "${!e}")/"
  check "$title: without endpoints UDP is refused at once" udp_refused a-pod1 "${!e}" 7000
  check "$title: another port is refused at once" refused a-pod1 "$vip:81/"
  check "$title: an address of no service is dropped by name" \
    dropped a service_unassigned get a-pod1 "http://$(in_url $unassigned)/" --max-time 1
  : > "$WORK/web.b"
  check "$title: a backend on the other host's network" wait_until 3 answers a-pod1 "http://$(in_url "${!k}"):443/"
  check "$title: a backend on its own host's network" answers b-pod1 "http://$(in_url "${!k}"):443/"
  check "$title: which see the pods" equal clients "$(clients b)" "$(printf '%s\n%s\n' "$($ip a 1)" "$($ip b 1)" | sort -u | tr '\n' ' ')"
  host "$title" "$vip" "$($node a)"
  check "$title: the host is the backend of its own request" answers b "http://$(in_url "${!k}"):443/"
  check "$title: a host whose service is a program of another host" answers a "http://$(in_url "${!k}"):443/"
  removal "$title" "$vip"
  capture_end
  check "$title: no service address on the underlay" no_frame "$WORK/pcap" 'ip.addr == 10.96.0.0/16 || ipv6.addr == fd98::/108'
  check "$title: no bad checksum on the underlay" good_checksums "$WORK/pcap"
  check "$title: no pod's address outside the tunnel" no_pod_outside "$WORK/pcap"
  for name in $NODE_NAMES; do check "$title: counters of $name close" closes "$name"; done
  stop_started
}

# host TITLE URL NODE-ADDRESS: the node's own programs use services through the host port.
host() {
  : > "$WORK/web.a-pod2"
  check "$1: the host reaches both backends" spread a "$2/"
  check "$1: which see the host's own address" equal clients "$(clients a-pod2)" "$3 "
}

services geneve 4 4
services vxlan 4 4
services geneve 6 6
finish
