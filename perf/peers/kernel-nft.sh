#!/usr/bin/env bash
# The kernel: vxlan device, conntrack, nftables. Services as kube-proxy's nftables mode writes them: one map from
# address and port to a chain, in which a backend is drawn.
# shellcheck source=perf/peers/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=perf/peers/kernel.sh
. "$PEERS/kernel.sh"

peer_available() {
  command -v nft > /dev/null || { say "nft is not installed: scripts/install-deps.sh --peers"; return 1; }
  kernel_available "$1" "$2"
}

# The chains of the backends, and of the services, in which one of them is drawn.
rules() {
  local number backend draw place
  echo 'table ip peer {'
  for ((number = 0; number < SERVICES; number++)); do
    draw='' place=0
    while read -r backend; do
      printf '  chain backend-%s-%s { meta l4proto udp dnat to %s:%s; }\n' "$number" "$place" "$backend" "$BACKEND_PORT"
      draw+="${draw:+, }$place : goto backend-$number-$place"
      place=$((place + 1))
    done < <(backends_of "$number")
    printf '  chain service-%s { numgen random mod %s vmap { %s }; }\n' "$number" "$BACKENDS" "$draw"
  done
  echo '  map services { type ipv4_addr . inet_proto . inet_service : verdict; elements = {'
  for ((number = 0; number < SERVICES; number++)); do
    printf '    %s . udp . %s : goto service-%s,\n' "$(service_ip "$number")" "$SERVICE_PORT" "$number"
  done
  cat << TEXT
  }; }
  chain in { type nat hook prerouting priority dstnat; ip daddr . meta l4proto . th dport vmap @services; }
  chain out { type nat hook postrouting priority srcnat; ip saddr $POD_IP oifname "up0" masquerade; }
}
TEXT
}

peer_up() {
  forward "$1"
  rules | in_node nft -f -
}

peer "$@"
