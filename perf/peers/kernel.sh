# shellcheck shell=bash
# What the kernel's peers share: forwarding between the pod's veth and a tunnel's device or the uplink,
# by threads of its own. Source it behind lib.sh; a peer then only says how addresses are translated.

# The threads that receive frames and carry them through to the far end: `threaded` NAPI.
peer_workers() { :; }
napi_threads() {
  local thread
  for thread in $(pgrep '^napi/podport-'; pgrep '^napi/up0-'); do
    printf '%s/%s %s\n' "$thread" "$thread" "$(cat "/proc/$thread/comm")"
  done
}
workers() { napi_threads; }

kernel_available() { # kernel_available JOB FLOWS
  local most
  case $1 in
    dnat-geneve) probe_link geneve id 1 remote 192.0.2.1 || { say "this kernel has no geneve device"; return 1; } ;;
    dnat-vxlan) probe_link vxlan id 1 dstport 4789 || { say "this kernel has no vxlan device"; return 1; } ;;
  esac
  # Room for connections is the machine's, not a namespace's: it is looked at, not changed.
  most=$(cat /proc/sys/net/netfilter/nf_conntrack_max 2> /dev/null || echo 0)
  if [ "$most" -lt $(($2 + $2 / 8)) ]; then
    say "the kernel tracks $most connections at most: sysctl -w net.netfilter.nf_conntrack_max=$(($2 + $2 / 4)) for $2 flows"
    return 1
  fi
}

# probe_link TYPE OPTIONS...: can there be such a device? Tried in a namespace that goes at once.
probe_link() { unshare -n ip link add probe0 type "$@" 2> /dev/null; }

# On threads of the forwarder's CPU it carries more; a single packet is through sooner where it arrived.
peer_tune() {
  local device threaded=1 thread
  [ "$1" = throughput ] || threaded=0
  for device in podport up0; do
    in_node sh -c "echo $threaded > /sys/class/net/$device/threaded"
  done
  [ "$threaded" = 1 ] || return 0
  wait_until 5 have_threads || die "the kernel has made no NAPI threads"
  for thread in $(napi_threads | cut -d/ -f1); do
    taskset -pc "$WORKER_CPU" "$thread" > /dev/null
    # At the level of whoever measures: nobody is preferred.
    renice -n "$(level)" -p "$thread" > /dev/null
  done
}
have_threads() { [ "$(napi_threads | wc -l)" -ge 2 ]; }

# forward JOB: routes, the tunnel, and receiving on threads of the forwarder's CPU.
forward() {
  local device
  in_node sysctl -qw net.ipv4.ip_forward=1
  ip -n "$NODE_NS" neigh replace "$POD_IP" lladdr "$POD_MAC" dev podport nud permanent
  ip -n "$NODE_NS" route add "$POD_IP/32" dev podport
  # Without outer checksums, as the others.
  case $1 in
    dnat-vxlan) ip -n "$NODE_NS" link add tunnel0 type vxlan id "$VNI" local "$NODE_IP" remote "$REMOTE_IP" \
      dstport "$VXLAN_PORT" nolearning noudpcsum dev up0 ;;
    dnat-geneve) ip -n "$NODE_NS" link add tunnel0 type geneve id "$VNI" remote "$REMOTE_IP" \
      dstport "$GENEVE_PORT" noudpcsum ;;
  esac
  if [ "$1" != snat ]; then
    ip -n "$NODE_NS" link set tunnel0 up
    ip -n "$NODE_NS" neigh replace 169.254.2.1 lladdr "$REMOTE_GATEWAY_MAC" dev tunnel0 nud permanent
    ip -n "$NODE_NS" route add 10.244.2.0/24 via 169.254.2.1 dev tunnel0 onlink
  fi
  for device in podport up0; do
    # Receive offload is what makes a veth without XDP receive by NAPI, which threads need.
    in_node ethtool -K "$device" gro on > /dev/null
  done
  peer_tune throughput
}
