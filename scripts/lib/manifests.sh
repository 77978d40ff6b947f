# shellcheck shell=bash disable=SC2153
# What each node is told: its own node.yaml, and the cluster's Node and Pod manifests.

# put FILE: standard input becomes FILE in one step; a watcher never sees half of it.
put() {
  local part
  part=$(dirname "$1")/.$(basename "$1").part
  cat > "$part"
  mv "$part" "$1"
}

# only the settings that were asked for: the rest are the program's own defaults
optional() { [ -z "$2" ] || printf '%s: %s\n' "$1" "$2"; }

node_config() {
  local node=$1
  cat <<YAML
# Node $node of the testbed.
nodeName: $node
uplink: eth0
mode: $MODE
nodeCIDR: [10.0.0.0/16, "fd00:10::/48"]
podCIDR: [$(cluster_net4), "$(cluster_net6)"]
serviceCIDR: [10.96.0.0/16, "fd98::/108"]
dnsServiceIP: [10.96.0.10, "fd98::a"]
vni: $VNI
underlay: "$UNDERLAY"
underlayMTU: $MTU
YAML
  optional tunnelPort "$TUNNEL_PORT"
}

node_manifest() {
  local node=$1 mode
  mode=$(mode_of "$node")
  cat <<YAML
apiVersion: v1
kind: Node
metadata:
  name: $node
YAML
  if [ "$mode" != "$MODE" ]; then
    printf '  annotations:\n    overlane.io/mode: %s\n' "$mode"
  fi
  cat <<YAML
spec:
  podCIDR: $(pod_net4 "$node").0/24
  podCIDRs: [$(pod_net4 "$node").0/24, "$(pod_net6 "$node")::/64"]
status:
  addresses:
    - {type: InternalIP, address: $(node_ip4 "$node")}
    - {type: InternalIP, address: "$(node_ip6 "$node")"}
    - {type: Hostname, address: $node}
YAML
}

pod_manifest() {
  local node=$1 pod=$2
  cat <<YAML
apiVersion: v1
kind: Pod
metadata:
  namespace: default
  name: $node-pod$pod
  labels: {app: pod$pod, node: $node}
  annotations:
    overlane.io/interface: pod$pod
spec:
  nodeName: $node
  containers:
    - {name: shell, image: testbed}
status:
  phase: Running
  podIP: $(pod_ip4 "$node" "$pod")
  podIPs:
    - ip: $(pod_ip4 "$node" "$pod")
    - ip: "$(pod_ip6 "$node" "$pod")"
YAML
}

# Every node knows every node and every pod.
write_manifests() {
  local reader node pod dir
  for reader in $NODE_NAMES; do
    dir=$RUN_DIR/$reader
    mkdir -p "$dir/manifests"
    node_config "$reader" | put "$dir/node.yaml"
    for node in $NODE_NAMES; do
      node_manifest "$node" | put "$dir/manifests/node-$node.yaml"
      for ((pod = 1; pod <= PODS; pod++)); do
        pod_manifest "$node" "$pod" | put "$dir/manifests/pod-$node-pod$pod.yaml"
      done
    done
  done
}
