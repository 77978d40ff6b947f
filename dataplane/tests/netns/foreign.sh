# shellcheck shell=bash
# A second node that is not Overlane's: node k, number 11, with a namespace on the underlay and
# manifests that node a reads. Scenarios put another tunnel implementation into it.

FOREIGN=k
FOREIGN_POD4=10.244.11.10
FOREIGN_POD6=fd12:3456:0:b::a

# foreign_node: the namespace ovt-k with eth0 on the underlay. `down` removes it, too.
foreign_node() {
  new_namespace "$FOREIGN"
  link_in net add "net-$FOREIGN" mtu "$MTU" type veth peer name eth0 mtu "$MTU" netns "$(namespace "$FOREIGN")"
  like_a_cable net "net-$FOREIGN"
  link_in net set "net-$FOREIGN" master br0 up
  like_a_cable "$FOREIGN" eth0
  link_in "$FOREIGN" set eth0 up
}

# gateway_mac NODE: the default one, made from its IPv4 address.
gateway_mac() {
  local IFS=. octets
  read -ra octets <<< "$(node_ip4 "$1")"
  printf '02:4f:%02x:%02x:%02x:%02x' "${octets[@]}"
}

# foreign_manifests MAC: tell node a about node k, its gateway MAC and its pod.
foreign_manifests() {
  local dir=$RUN_DIR/a/manifests
  cat > "$dir/.node-k.part" <<YAML
apiVersion: v1
kind: Node
metadata:
  name: $FOREIGN
  annotations: {overlane.io/gateway-mac: "$1"}
spec:
  podCIDRs: [10.244.11.0/24, "fd12:3456:0:b::/64"]
status:
  addresses:
    - {type: InternalIP, address: $(node_ip4 "$FOREIGN")}
    - {type: InternalIP, address: "$(node_ip6 "$FOREIGN")"}
YAML
  mv "$dir/.node-k.part" "$dir/node-k.yaml"
  wait_until 5 knows_foreign || die "node a did not take up node k: $(status_of a .peers) peers"
}

knows_foreign() { [ "$(status_of a .peers)" = 1 ]; }

# talk TITLE: ping, TCP and UDP between a-pod1 and the foreign pod, both ways and families.
talk() {
  local title=$1
  check "$title: out, ping IPv4" one_ping a-pod1 "$FOREIGN_POD4"
  check "$title: out, ping IPv6" one_ping a-pod1 "$FOREIGN_POD6"
  check "$title: out, TCP IPv4" tcp_echo a-pod1 "$FOREIGN_POD4"
  check "$title: out, TCP IPv6" tcp_echo a-pod1 "$FOREIGN_POD6"
  check "$title: out, UDP IPv4" udp_echo a-pod1 "$FOREIGN_POD4"
  check "$title: out, UDP IPv6" udp_echo a-pod1 "$FOREIGN_POD6"
  check "$title: in, ping IPv4" one_ping "$FOREIGN" "$(pod_ip4 a 1)" -I "$FOREIGN_POD4"
  check "$title: in, ping IPv6" one_ping "$FOREIGN" "$(pod_ip6 a 1)" -I "$FOREIGN_POD6"
  check "$title: in, TCP IPv4" tcp_echo "$FOREIGN" "$(pod_ip4 a 1)"
  check "$title: in, TCP IPv6" tcp_echo "$FOREIGN" "$(pod_ip6 a 1)"
}
