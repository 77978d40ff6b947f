#!/usr/bin/env bash
# The kernel: vxlan device, IPVS for services, masquerade by nftables.
# shellcheck source=perf/peers/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=perf/peers/kernel.sh
. "$PEERS/kernel.sh"

peer_available() {
  command -v ipvsadm > /dev/null || { say "ipvsadm is not installed: scripts/install-deps.sh --peers"; return 1; }
  [ -e /proc/net/ip_vs ] || modprobe -q ip_vs 2> /dev/null || { say "this kernel has no IPVS (ip_vs)"; return 1; }
  if [ "$1" = snat ]; then say "IPVS is for services; kernel-nft has the way out"; return 1; fi
  kernel_available "$1" "$2"
}

peer_up() {
  local number backend
  forward "$1"
  # As kube-proxy: the services' addresses are the node's, on a device of their own.
  ip -n "$NODE_NS" link add ipvs0 type dummy
  for ((number = 0; number < SERVICES; number++)); do
    ip -n "$NODE_NS" address add "$(service_ip "$number")/32" dev ipvs0
    in_node ipvsadm -A -u "$(service_ip "$number"):$SERVICE_PORT" -s rr
    while read -r backend; do
      in_node ipvsadm -a -u "$(service_ip "$number"):$SERVICE_PORT" -r "$backend:$BACKEND_PORT" -m
    done < <(backends_of "$number")
  done
}

peer "$@"
