#!/usr/bin/env bash
# What the underlay sees: only node addresses, correct checksums, many source ports, the right VNI.
# shellcheck source=dataplane/tests/netns/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# frames FILTER: how many match.
frames() {
  tshark -n -r "$WORK/pcap" -d "udp.port==7000,data" -d "tcp.port==7000,data" \
    -o ip.check_checksum:TRUE -o udp.check_checksum:TRUE -o tcp.check_checksum:TRUE \
    -Y "$1" -T fields -e frame.number 2> /dev/null | wc -l
}
fields() { tshark -n -r "$WORK/pcap" -Y "$1" -T fields -e "$2" 2> /dev/null; }
outer_pods() { tcpdump -Z root -nr "$WORK/pcap" 'net 10.244.0.0/16 or net fd12:3456::/48' 2> /dev/null | wc -l; }

traffic() {
  one_ping a-pod1 "$(pod_ip4 b 1)"
  one_ping a-pod1 "$(pod_ip6 b 1)"
  for _ in 1 2 3 4 5 6 7 8; do
    udp_echo a-pod1 "$(pod_ip4 b 1)" 5
    udp_echo a-pod1 "$(pod_ip6 b 1)" 5
  done
  tcp_echo a-pod1 "$(pod_ip4 b 1)" 300000
  tcp_echo a-pod1 "$(pod_ip6 b 1)" 300000
}

# capture MODE UNDERLAY
capture() {
  local mode=$1 tunnel=$1 bad
  bed --mode "$mode" --underlay "$2" --vni 1234
  start net tcpdump --immediate-mode -Z root -ni br0 -s 0 -U -w "$WORK/pcap" udp port 6081 or udp port 4789 or net 10.244.0.0/16 or net fd12:3456::/48
  local tcpdump=$STARTED
  wait_until 5 test -s "$WORK/pcap" || die "tcpdump did not start: $(cat "$STARTED_LOG")"
  serve b-pod1
  check "$mode over IPv$2: traffic" traffic
  sleep 0.3
  stop_one "$tcpdump" INT
  check "$mode over IPv$2: tunnel frames were captured" at_least frames "$(frames "$tunnel")" 100
  check "$mode over IPv$2: no pod address outside the tunnel" equal frames "$(outer_pods)" 0
  for bad in ip udp tcp icmp icmpv6; do
    check "$mode over IPv$2: no bad $bad checksum" equal frames "$(frames "$bad.checksum.status == \"Bad\"")" 0
  done
  check "$mode over IPv$2: no malformed frame" equal frames "$(frames '_ws.malformed || _ws.expert.severity == "Error"')" 0
  check "$mode over IPv$2: no frame longer than the link's" equal frames "$(frames 'frame.len > 1514')" 0
  check "$mode over IPv$2: VNI 1234 only" equal VNIs "$(fields "$tunnel" "$tunnel.vni" | sort -u | sed 's/^0x.*/hex &/;s/hex 0x0*4d2/1234/' | tr '\n' ' ')" "1234 "
  check "$mode over IPv$2: flows differ in their source ports" at_least ports "$(fields "$tunnel && udp" udp.srcport | cut -d, -f1 | sort -u | wc -l)" 8
  stop_started
}

for mode in geneve vxlan; do
  for underlay in 4 6; do capture "$mode" "$underlay"; done
done
finish
