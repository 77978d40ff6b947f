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
  [ "${ANNOUNCE:-no}" != yes ] || printf 'announce: {loadBalancerIPs: true}\n'
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

# everywhere NAME: standard input becomes the manifest NAME.yaml of every node. gone NAME: no more.
everywhere() {
  local text node
  text=$(cat)
  for node in $NODE_NAMES; do put "$RUN_DIR/$node/manifests/$1.yaml" <<< "$text"; done
}
gone() {
  local node
  for node in $NODE_NAMES; do rm -f "$RUN_DIR/$node/manifests/$1.yaml"; done
}

# service_manifest NAME IP4 IP6 PORT=TARGET/PROTOCOL[@NODEPORT]...: a dual-stack service. With
# LOAD_BALANCER="IP4 IP6" it has these addresses of a load balancer as well.
service_manifest() {
  local name=$1 port target type=ClusterIP address
  case $* in *@*) type=NodePort ;; esac
  [ -z "${LOAD_BALANCER:-}" ] || type=LoadBalancer
  cat <<YAML
apiVersion: v1
kind: Service
metadata: {namespace: default, name: $name}
spec:
  type: $type
  clusterIP: $2
  clusterIPs: [$2, "$3"]
  ipFamilies: [IPv4, IPv6]
  ipFamilyPolicy: RequireDualStack
  ports:
YAML
  shift 3
  for port in "$@"; do
    target=${port#*=} target=${target%@*}
    printf '    - {name: %s, port: %s, targetPort: %s, protocol: %s%s}\n' "$(port_name "${port%@*}")" \
      "${port%%=*}" "${target%/*}" "${target#*/}" "$(node_port "$port")"
  done
  [ -n "${LOAD_BALANCER:-}" ] || return 0
  printf 'status:\n  loadBalancer:\n    ingress:\n'
  for address in $LOAD_BALANCER; do printf '      - {ip: "%s"}\n' "$address"; done
}
port_name() { local port=${1%%=*}; printf 'p%s-%s' "$port" "$(tr '[:upper:]' '[:lower:]' <<< "${1#*/}")"; }
node_port() { case $1 in *@*) printf ', nodePort: %s' "${1#*@}" ;; esac; }

# slice_manifests NAME PORTS NODE=ADDRESS...: the service's endpoints, one slice of each family.
# PORTS: those of service_manifest, in one word.
slice_manifests() {
  local name=$1 ports=$2
  shift 2
  slice_manifest "$name" 4 "$ports" "$@"
  printf -- '---\n'
  slice_manifest "$name" 6 "$ports" "$@"
}

slice_manifest() { # slice_manifest NAME 4|6 PORTS NODE=ADDRESS...
  local name=$1 family=$2 port target endpoint
  cat <<YAML
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  namespace: default
  name: $name-ipv$family
  labels: {kubernetes.io/service-name: $name}
addressType: IPv$family
ports:
YAML
  for port in $3; do
    target=${port#*=}
    printf '  - {name: %s, port: %s, protocol: %s}\n' "$(port_name "$port")" "${target%/*}" "${target#*/}"
  done
  shift 3
  printf 'endpoints:\n'
  for endpoint in "$@"; do
    case $endpoint-$family in *:*-4 | *.*-6) continue ;; esac
    printf '  - {addresses: ["%s"], nodeName: %s, conditions: {ready: true}}\n' "${endpoint#*=}" "${endpoint%%=*}"
  done
}
