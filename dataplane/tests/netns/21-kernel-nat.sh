#!/usr/bin/env bash
# The same packets through Overlane's NAT on node a and through the kernel's, conntrack and nftables, on node b: what
# comes out is the same, field by field.
# shellcheck source=dataplane/tests/netns/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

VIP4=10.96.9.9 VIP6=fd98::909

# backend_of NAME IP4 IP6 NODE-PORT POLICY ADDRESS4 ADDRESS6: a service of TCP and UDP with one backend, port 8080; with
# a NodePort unless that is empty.
backend_of() {
  local at=${4:+@$4}
  service_manifest "$1" "$2" "$3" "80=8080/TCP$at" "80=8080/UDP$at" |
    sed "s/^spec:/spec:\n  externalTrafficPolicy: $5/" | everywhere "service-$1"
  slice_manifests "$1" "80=8080/TCP 80=8080/UDP" "a=$6" "a=$7" | everywhere "slices-$1"
}

manifests() {
  backend_of outside $VIP4 $VIP6 '' Cluster "$EXT4" "$EXT6"
  backend_of cluster 10.96.9.1 fd98::901 30080 Cluster "$(pod_ip4 a 1)" "$(pod_ip6 a 1)"
  backend_of local 10.96.9.2 fd98::902 30081 Local "$(pod_ip4 a 1)" "$(pod_ip6 a 1)"
}

# Two protocols of three services.
knows_services() { [ "$(overlane_cli a -o json service list | jq length)" = 6 ]; }

# kernel_node: node b becomes what a node is without Overlane.
kernel_node() {
  testbed stop-control b
  testbed stop-dataplane b
  at b sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
  address_in b 169.254.1.1/32 pod1
  address_in b fe80::1/64 pod1
  route_in b "$(pod_ip4 b 1)/32" dev pod1
  route6_in b "$(pod_ip6 b 1)/128" dev pod1
  at b nft -f - << NFT
table inet witness {
  chain in {
    type nat hook prerouting priority dstnat
    ip daddr $VIP4 meta l4proto { tcp, udp } th dport 80 dnat ip to $EXT4:8080
    ip6 daddr $VIP6 meta l4proto { tcp, udp } th dport 80 dnat ip6 to [$EXT6]:8080
    ip daddr $(node_ip4 b) meta l4proto { tcp, udp } th dport 30080 ct mark set 1 dnat ip to $(pod_ip4 b 1):8080
    ip6 daddr $(node_ip6 b) meta l4proto { tcp, udp } th dport 30080 ct mark set 1 dnat ip6 to [$(pod_ip6 b 1)]:8080
    ip daddr $(node_ip4 b) meta l4proto { tcp, udp } th dport 30081 dnat ip to $(pod_ip4 b 1):8080
    ip6 daddr $(node_ip6 b) meta l4proto { tcp, udp } th dport 30081 dnat ip6 to [$(pod_ip6 b 1)]:8080
  }
  chain out {
    type nat hook postrouting priority srcnat
    iifname "pod1" oifname "eth0" snat ip to $(node_ip4 b)
    iifname "pod1" oifname "eth0" snat ip6 to $(node_ip6 b)
    ct mark 1 snat ip to $(node_ip4 b)
    ct mark 1 snat ip6 to $(node_ip6 b)
  }
  # What answers no flow would be the host's, which has nothing to say here.
  chain host {
    type filter hook input priority 0
    ct state new meta l4proto { tcp, udp } drop
  }
}
NFT
}

# says_nothing NAME: its kernel answers nothing: who talks there is the witness.
says_nothing() {
  at "$1" nft -f - << 'NFT'
table inet witness {
  chain out {
    type filter hook output priority 0; policy drop;
    icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
  }
}
NFT
}

# mac_of NAME INTERFACE; gateway_of NAME ADDRESS: whom packets to it are sent to.
mac_of() { at "$1" cat "/sys/class/net/$2/address"; }
gateway_of() {
  one_ping "$1" "$2" > /dev/null || die "the gateway of $1, $2, does not answer"
  at "$1" ip -j neigh show "$2" | jq -r '.[0].lladdr'
}

# config: what the witness is told, as JSON.
config() {
  local n
  jq -n --arg ext "$(namespace ext)" --arg ext_gateway "$(mac_of net net-ext)" \
    --argjson remotes "$(jq -n --arg v4 "$EXT4" --arg v6 "$EXT6" \
      '{"4": ([$v4] + [range(11; 16) | "203.0.113.\(.)"]), "6": ([$v6] + [range(11; 16) | "2001:db8:113::\(.)"])}')" \
    --arg vip4 "$VIP4" --arg vip6 "$VIP6" \
    --arg router4 "$ROUTER4" --arg router6 "$ROUTER6" \
    '{ext: $ext, ext_gateway: $ext_gateway, remotes: $remotes, vip: {"4": $vip4, "6": $vip6},
      routers: {"4": "198.18.0.1", "6": "2001:db8:ffff::1"},
      real_routers: {"4": $router4, "6": $router6}, sides: {}}' > "$WORK/config.json"
  for n in a b; do
    jq --arg name "$([ $n = a ] && echo overlane || echo linux)" --arg namespace "$(namespace $n-pod1)" \
      --arg gateway "$(gateway_of $n-pod1 169.254.1.1)" --arg pod4 "$(pod_ip4 $n 1)" --arg pod6 "$(pod_ip6 $n 1)" \
      --arg node4 "$(node_ip4 $n)" --arg node6 "$(node_ip6 $n)" \
      '.sides[$name] = {$namespace, $gateway, $pod4, $pod6, $node4, $node6}' "$WORK/config.json" > "$WORK/next"
    mv "$WORK/next" "$WORK/config.json"
  done
}

witness() { "$PYTHON" "$HERE/nat_witness.py" "$WORK/config.json" "$1" "$2"; }
# has_cases COUNT: so many different cases were compared at least.
has_cases() { at_least cases "$(jq .cases "$WORK/result")" "$1"; }

bed --mode native
for n in 11 12 13 14 15; do
  address_in ext "203.0.113.$n/24" eth0
  address_in ext "2001:db8:113::$n/64" eth0
done
manifests
wait_until 15 knows_services || die "node a did not take up the services: $(overlane_cli a service list)"
kernel_node
config
one_ping a-pod1 "$EXT4" > /dev/null; one_ping a-pod1 "$EXT6" > /dev/null
one_ping b-pod1 "$EXT4" > /dev/null; one_ping b-pod1 "$EXT6" > /dev/null
for name in a-pod1 b-pod1 ext; do says_nothing $name; done
# The router tells everybody of everything.
at net sysctl -qw net.ipv4.icmp_ratelimit=0 net.ipv4.icmp_msgs_per_sec=100000 net.ipv4.icmp_msgs_burst=10000 net.ipv6.icmp.ratelimit=0
FLOWS=200 ROUNDS=2
[ "$LONG" = quick ] || { FLOWS=1000 ROUNDS=2; }
capture_begin "$WORK/pcap" "host $(node_ip4 a) or host $(node_ip6 a) or net 10.244.1.0/24 or net fd12:3456:0:1::/64"
for ((round = 1; round <= ROUNDS; round++)); do
  seed=${OVERLANE_SEED:-$((RANDOM * 32768 + RANDOM))}
  check "$FLOWS random flows with seed $seed" witness "$seed" "$FLOWS"
  cp "$WORK/said" "$WORK/result"
  printf '# %s\n' "$(cat "$WORK/result")"
done
capture_end
check "every kind of packet was among them" has_cases 150
check "no pod's address left" no_pod_outside "$WORK/pcap"
check "counters of a close" closes a
finish
