#!/usr/bin/env bash
# The kernel: vxlan device, conntrack, iptables. Services as kube-proxy's iptables mode writes them: one rule after the
# other, each with a chain in which a backend is drawn.
# shellcheck source=perf/peers/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=perf/peers/kernel.sh
. "$PEERS/kernel.sh"

# The kernel's own iptables where there is a command for it: the other one writes nftables rules.
command_for_tables() {
  local name
  for name in iptables-legacy iptables; do
    if command -v "$name" > /dev/null && unshare -n "$name" -t nat -L > /dev/null 2>&1; then printf '%s' "$name"; return; fi
  done
  return 1
}

peer_available() {
  command -v iptables > /dev/null || { say "iptables is not installed: scripts/install-deps.sh --peers"; return 1; }
  command_for_tables > /dev/null || { say "this kernel has no iptables nat table"; return 1; }
  kernel_available "$1" "$2"
}

rules() {
  local number backend left
  echo '*nat'
  for ((number = 0; number < SERVICES; number++)); do printf ':SERVICE-%s - [0:0]\n' "$number"; done
  for ((number = 0; number < SERVICES; number++)); do
    printf -- '-A PREROUTING -d %s/32 -p udp -m udp --dport %s -j SERVICE-%s\n' "$(service_ip "$number")" "$SERVICE_PORT" "$number"
    left=$BACKENDS
    while read -r backend; do
      printf -- '-A SERVICE-%s' "$number"
      [ "$left" = 1 ] || printf -- ' -m statistic --mode random --probability %s' "$(awk "BEGIN { print 1 / $left }")"
      printf -- ' -p udp -j DNAT --to-destination %s:%s\n' "$backend" "$BACKEND_PORT"
      left=$((left - 1))
    done < <(backends_of "$number")
  done
  printf -- '-A POSTROUTING -s %s/32 -o up0 -j MASQUERADE\nCOMMIT\n' "$POD_IP"
}

peer_up() {
  local tables
  forward "$1"
  tables=$(command_for_tables)
  rules | in_node "$tables-restore"
}

peer "$@"
