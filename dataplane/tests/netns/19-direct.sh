#!/usr/bin/env bash
# Direct server return: a balancer's address is at one node, and so is the node port that clients ask; the
# backend is at the other, which answers clients outside itself, as the address that they asked; the backend
# sees the client.
# shellcheck source=dataplane/tests/netns/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# Of no node's network: the router is told where it is.
VIP4=198.51.100.80 VIP6=2001:db8:100::80
PORTS='80=8080/TCP@30080 53=8080/UDP@30053 7000=7000/TCP@30700 7001=7000/UDP@30701 132=1132/SCTP@30132'
# The same without node ports, as slices have them.
TARGETS=$(sed -E 's/@[0-9]+//g' <<< "$PORTS")

# asked KIND FAMILY: the address that clients ask. port_of KIND NAME: and the port there.
asked() {
  case $1-$2 in
    balancer-4) printf '%s' "$VIP4" ;;
    balancer-6) printf '%s' "$VIP6" ;;
    node-4) node_ip4 a ;;
    node-6) node_ip6 a ;;
  esac
}
port_of() {
  case $1-$2 in
    balancer-web) echo 80 ;;
    balancer-name) echo 53 ;;
    balancer-tcp) echo 7000 ;;
    balancer-udp) echo 7001 ;;
    balancer-sctp) echo 132 ;;
    node-web) echo 30080 ;;
    node-name) echo 30053 ;;
    node-tcp) echo 30700 ;;
    node-udp) echo 30701 ;;
    node-sctp) echo 30132 ;;
  esac
}
outside() { case $1 in 4) printf '%s' "$EXT4" ;; 6) printf '%s' "$EXT6" ;; esac; }

# balanced FORWARDING: the service, whose backend is at b.
balanced() {
  # shellcheck disable=SC2086
  {
    LOAD_BALANCER="$VIP4 $VIP6" service_manifest web 10.96.0.80 fd98::80 $PORTS |
      sed "s|name: web}|name: web, annotations: {overlane.io/forwarding: $1}}|"
    printf -- '---\n'
    slice_manifests web "$TARGETS" "b=$(pod_ip4 b 2)" "b=$(pod_ip6 b 2)"
  } | everywhere web
}

# Of clients that ask KIND FAMILY.
seen_by_tcp() { equal "the answer" "$(get ext "http://$(in_url "$(asked "$1" "$2")"):$(port_of "$1" web)/")" "b-pod2 $3"; }
seen_by_udp() { equal "the answer" "$(ask ext "$(asked "$1" "$2")" "$(port_of "$1" name)")" "b-pod2 $3"; }
tcp_to() { at ext "$PYTHON" "$HERE/echo.py" tcp "$(asked "$1" "$2")" "$(port_of "$1" tcp)" "${3:-200000}"; }
udp_to() { at ext "$PYTHON" "$HERE/echo.py" udp "$(asked "$1" "$2")" "$(port_of "$1" udp)" 10; }

OWN=40000
mac_of() { in_ns "$1" cat /sys/class/net/eth0/address; }
# frames FILE FILTER: how many there are in the capture.
frames() { tcpdump -Z root -nr "$1" "$2" 2> /dev/null | wc -l; }

forwarding_is() { equal "forwarding" "$(overlane_cli a -o json service list | jq -r '[.[].forwarding] | unique | join(" ")')" "$1"; }

# served TITLE FAMILY CLIENT: clients are served, and this is whom the backend sees.
served() {
  local kind
  for kind in balancer node; do
    # Of one client port's packets to two addresses of a backend the second would be told apart by source NAT.
    OWN=$((OWN + 1))
    check "$1, $kind, IPv$2: the backend's web server sees $3" wait_until 10 seen_by_tcp "$kind" "$2" "$3"
    check "$1, $kind, IPv$2: so does one of datagrams" seen_by_udp "$kind" "$2" "$3"
    check "$1, $kind, IPv$2: TCP, byte by byte" tcp_to "$kind" "$2"
    check "$1, $kind, IPv$2: UDP" udp_to "$kind" "$2"
    check "$1, $kind, IPv$2: SCTP, in fragments too, and the backend sees $3" \
      sctp_echo ext "$(asked "$kind" "$2")" "$(port_of "$kind" sctp)" b-pod2 "$3" "$OWN"
  done
}

# answered_by KIND FILE NODE OTHER: the answers leave by that node, and none by the other.
answered_by() {
  local answers="src host $VIP4 or src host $VIP6"
  [ "$1" = balancer ] || answers="(src host $(node_ip4 a) or src host $(node_ip6 a)) and src portrange 30053-30701"
  shift
  at_least "answers by $2" "$(frames "$1" "ether src $(mac_of "$2") and ($answers)")" 40
  equal "answers by $3" "$(frames "$1" "ether src $(mac_of "$3") and ($answers)")" 0
}

for options in "4 1" "6 2"; do
  read -r underlay workers <<< "$options"
  bed --underlay "$underlay" --workers "$workers"
  ip -n "$(namespace net)" route add "$VIP4" via "$(node_ip4 a)"
  ip -n "$(namespace net)" -6 route add "$VIP6" via "$(node_ip6 a)"
  web b-pod2
  serve b-pod2
  balanced dsr
  wait_until 10 forwarding_is dsr || true
  capture_begin "$WORK/pcap"
  for family in 4 6; do served "underlay $underlay" "$family" "$(outside "$family")"; done
  capture_end
  for kind in balancer node; do
    check "underlay $underlay, $kind: the answers leave by the backend's node" answered_by "$kind" "$WORK/pcap" b a
  done
  check "underlay $underlay: no pod's address on the underlay" no_pod_outside "$WORK/pcap"
  check "underlay $underlay: no bad checksum on the underlay" good_checksums "$WORK/pcap"
  if [ "$workers" = 1 ]; then
    link_in net set net-ext mtu 1300
    link_in ext set eth0 mtu 1300
    ip -n "$(namespace ext)" route change default via 203.0.113.1 advmss 1460
    ip -n "$(namespace ext)" -6 route change default via 2001:db8:113::1 advmss 1440
    for kind in balancer node; do
      for family in 4 6; do
        check "$kind, IPv$family: 1 MB gets through a narrow path to the client" tcp_to "$kind" "$family" 1000000
      done
    done
    link_in ext set eth0 mtu 1500
    link_in net set net-ext mtu 1500
  fi
  balanced snat
  check "underlay $underlay: the service is changed" wait_until 10 forwarding_is snat
  served "underlay $underlay, by source NAT" 4 "$(node_ip4 a)"
  served "underlay $underlay, by source NAT" 6 "$(node_ip6 a)"
  for node in $NODE_NAMES; do check "underlay $underlay: counters of $node close" closes "$node"; done
  stop_started
done

bed --mode vxlan
ip -n "$(namespace net)" route add "$VIP4" via "$(node_ip4 a)"
ip -n "$(namespace net)" -6 route add "$VIP6" via "$(node_ip6 a)"
web b-pod2
serve b-pod2
balanced dsr
served "vxlan: by source NAT" 4 "$(node_ip4 a)"
served "vxlan: by source NAT" 6 "$(node_ip6 a)"
check "vxlan: and that is said" grep -q 'by snat' <<< "$(overlane_cli a service list)"
for node in $NODE_NAMES; do check "vxlan: counters of $node close" closes "$node"; done
finish
