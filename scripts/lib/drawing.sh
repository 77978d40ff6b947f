# shellcheck shell=bash
# The testbed on one screen.

# state_of PROGRAM NODE: one word.
state_of() { if running "$1" "$2" > /dev/null; then printf up; else printf down; fi; }

draw_node() {
  local node=$1 pod
  printf '   |\n   +-- eth0 %s  %s\n' "$(node_ip4 "$node")" "$(node_ip6 "$node")"
  printf '   |   %s%s%s (node %s, reached by %s)  dataplane %s, control %s\n' \
    "$BOLD" "$(namespace "$node")" "$PLAIN" "$node" "$(mode_of "$node")" \
    "$(state_of dataplane "$node")" "$(state_of control "$node")"
  for ((pod = 1; pod <= PODS; pod++)); do
    printf '   |     +-- pod%-3s %s-pod%s  %s  %s\n' "$pod" "$(namespace "$node")" "$pod" \
      "$(pod_ip4 "$node" "$pod")" "$(pod_ip6 "$node" "$pod")"
  done
}

draw_testbed() {
  local node
  printf '\n   %s%s%s  eth0 %s  %s   a host outside\n' "$BOLD" "$(namespace ext)" "$PLAIN" "$EXT4" "$EXT6"
  printf '   |   203.0.113.1  2001:db8:113::1\n'
  printf '   %s%s%s  br0 %s  %s   the underlay: bridge and router, MTU %s\n' \
    "$BOLD" "$(namespace net)" "$PLAIN" "$ROUTER4" "$ROUTER6" "$MTU"
  for node in $NODE_NAMES; do draw_node "$node"; done
  printf '\n'
}
