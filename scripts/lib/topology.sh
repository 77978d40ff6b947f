# shellcheck shell=bash
# The network of the testbed: namespaces, the underlay's bridge, veths, addresses, routes.
# Every interface is created inside a namespace of the testbed; nothing of the machine's own
# is looked at or changed.

# new_namespace NAME: make it, after writing down that it is ours.
new_namespace() {
  local ns
  ns=$(namespace "$1")
  printf 'namespace=%s\n' "$ns" >> "$STATE"
  ip netns add "$ns" || return 1
  # No duplicate address detection, no router solicitations: addresses work at once, and a
  # capture holds what the test sends.
  in_ns "$1" sysctl -qw \
    net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.default.disable_ipv6=0 \
    net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0 \
    net.ipv6.conf.default.router_solicitations=0 net.ipv6.conf.default.accept_ra=0 \
    net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0 \
    net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.default.send_redirects=0
  ip -n "$ns" link set lo up
}

in_ns() { local name=$1; shift; ip netns exec "$(namespace "$name")" "$@"; }
link_in() { local name=$1; shift; ip -n "$(namespace "$name")" link "$@"; }
address_in() {
  case $2 in
    *:*) ip -n "$(namespace "$1")" address add "$2" dev "$3" nodad ;;
    *) ip -n "$(namespace "$1")" address add "$2" dev "$3" ;;
  esac
}
route_in() { local name=$1; shift; ip -n "$(namespace "$name")" route add "$@"; }
route6_in() { local name=$1; shift; ip -n "$(namespace "$name")" -6 route add "$@"; }

# An Ethernet cable carries finished checksums and frames of at most the MTU; a veth passes
# on whatever its sender left undone. So both ends of the underlay's cables have transmit
# checksumming off, which switches segmentation offload off as well. Pods' veths keep their
# defaults: dealing with those is the dataplane's work.
like_a_cable() { in_ns "$1" ethtool -K "$2" tx off >/dev/null; }

# The underlay: a bridge that is also the router, so that `tcpdump -i br0` sees all.
build_underlay() {
  new_namespace net
  in_ns net sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
  link_in net add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0
  link_in net set br0 mtu "$MTU" up
  address_in net "$ROUTER4/16" br0
  address_in net "$ROUTER6/48" br0
}

# The host outside, behind the router.
build_ext() {
  new_namespace ext
  link_in net add net-ext type veth peer name eth0 netns "$(namespace ext)"
  address_in net 203.0.113.1/24 net-ext
  address_in net 2001:db8:113::1/64 net-ext
  like_a_cable net net-ext
  link_in net set net-ext up
  like_a_cable ext eth0
  link_in ext set eth0 up
  address_in ext "$EXT4/24" eth0
  address_in ext "$EXT6/64" eth0
  route_in ext default via 203.0.113.1
  route6_in ext default via 2001:db8:113::1
}

# build_node NODE: namespace, uplink, routes. As many queues as workers at both ends.
build_node() {
  local node=$1 port=net-$1
  new_namespace "$node"
  link_in net add "$port" mtu "$MTU" numrxqueues "$WORKERS" numtxqueues "$WORKERS" type veth \
    peer name eth0 mtu "$MTU" numrxqueues "$WORKERS" numtxqueues "$WORKERS" netns "$(namespace "$node")"
  like_a_cable net "$port"
  link_in net set "$port" master br0 up
  like_a_cable "$node" eth0
  link_in "$node" set eth0 up
  address_in "$node" "$(node_ip4 "$node")/16" eth0
  address_in "$node" "$(node_ip6 "$node")/48" eth0
  route_in "$node" default via "$ROUTER4"
  route6_in "$node" default via "$ROUTER6"
  # The node's kernel does not forward: what the dataplane does not carry stays lost.
  in_ns "$node" sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0
}

# build_native_routes NODE PEER: what a cloud's route table says about the peer's pods.
build_native_routes() {
  route_in "$1" "$(pod_net4 "$2").0/24" via "$(node_ip4 "$2")" metric 4096
  route6_in "$1" "$(pod_net6 "$2")::/64" via "$(node_ip6 "$2")" metric 4096
}

# build_pod NODE POD: namespace ovl-NODE-podPOD, its eth0, the node's end podPOD.
build_pod() {
  local node=$1 pod=$2 name=$1-pod$2
  new_namespace "$name"
  link_in "$node" add "pod$pod" type veth peer name eth0 netns "$(namespace "$name")"
  link_in "$node" set "pod$pod" addrgenmode none
  link_in "$node" set "pod$pod" up
  link_in "$name" set eth0 up
  address_in "$name" "$(pod_ip4 "$node" "$pod")/32" eth0
  address_in "$name" "$(pod_ip6 "$node" "$pod")/128" eth0
  route_in "$name" default via 169.254.1.1 dev eth0 onlink
  route6_in "$name" default via fe80::1 dev eth0
}

# mode_of NODE: how others reach it.
mode_of() {
  local pair
  for pair in $MODES_OF; do
    if [ "${pair%%=*}" = "$1" ]; then printf '%s' "${pair#*=}"; return; fi
  done
  printf '%s' "$MODE"
}

build_topology() {
  local node peer pod
  build_underlay
  build_ext
  for node in $NODE_NAMES; do
    build_node "$node"
    for ((pod = 1; pod <= PODS; pod++)); do build_pod "$node" "$pod"; done
  done
  for node in $NODE_NAMES; do
    for peer in $NODE_NAMES; do
      if [ "$node" != "$peer" ] && [ "$(mode_of "$peer")" = native ]; then
        build_native_routes "$node" "$peer"
      fi
    done
  done
}

# Take down every namespace written down in the state file, after ending what runs inside.
remove_namespaces() {
  local ns pid inside=()
  while read -r ns; do
    [ -e "/run/netns/$ns" ] || continue
    while read -r pid; do inside+=("$pid"); done < <(ip netns pids "$ns" 2>/dev/null)
  done < <(sed -n 's/^namespace=//p' "$STATE")
  if [ ${#inside[@]} -gt 0 ]; then
    kill "${inside[@]}" 2>/dev/null || true
    wait_until 2 all_gone "${inside[@]}" || kill -KILL "${inside[@]}" 2>/dev/null || true
  fi
  while read -r ns; do
    if [ -e "/run/netns/$ns" ]; then ip netns delete "$ns" || warn "could not delete namespace $ns"; fi
  done < <(sed -n 's/^namespace=//p' "$STATE")
}

all_gone() {
  local pid
  for pid in "$@"; do ! [ -d "/proc/$pid" ] || return 1; done
}
