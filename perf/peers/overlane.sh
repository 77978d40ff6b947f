#!/usr/bin/env bash
# Overlane: one dataplane with one busy worker, one control process, and a cluster of two nodes in manifests.
# OVERLANE_TRANSMIT=program: it sends by a BPF program.
# shellcheck source=perf/peers/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

DATAPLANE=$RUN/dataplane.sock CONTROL=$RUN/control.sock

peer_available() {
  local name
  for name in overlane-dataplane overlane-control overlane; do program "$name" > /dev/null || return 1; done
}
peer_workers() { echo 'dataplane worker-.*'; }

# flow_capacity FLOWS: room for them in a table that is half full at most.
flow_capacity() {
  local room=262144
  while [ "$room" -lt $(($1 * 2)) ]; do room=$((room * 2)); done
  printf '%s' "$room"
}

config() { # config JOB FLOWS
  local mode
  mode=$(tunnel_of "$1")
  cat << YAML
nodeName: a
uplink: up0
mode: ${mode:-geneve}
vni: $VNI
nodeCIDR: [10.0.0.0/16]
podCIDR: [10.244.0.0/16]
serviceCIDR: [10.96.0.0/16]
dnsServiceIP: [10.96.0.10]
flowCapacity: $(flow_capacity "$2")
YAML
}

node() { # node NAME ADDRESS PODS
  cat << YAML
---
apiVersion: v1
kind: Node
metadata: {name: $1}
spec: {podCIDR: $3, podCIDRs: [$3]}
status: {addresses: [{type: InternalIP, address: $2}]}
YAML
}

pod() { # pod NAME NODE ADDRESS ANNOTATIONS
  cat << YAML
---
apiVersion: v1
kind: Pod
metadata: {namespace: default, name: $1, annotations: {$4}}
spec: {nodeName: $2, containers: [{name: shell, image: testbed}]}
status: {phase: Running, podIP: $3, podIPs: [{ip: $3}]}
YAML
}

service() { # service NUMBER
  local backend
  cat << YAML
---
apiVersion: v1
kind: Service
metadata: {namespace: default, name: service-$1}
spec:
  type: ClusterIP
  clusterIP: $(service_ip "$1")
  clusterIPs: [$(service_ip "$1")]
  ipFamilies: [IPv4]
  ports: [{name: ask, port: $SERVICE_PORT, targetPort: $BACKEND_PORT, protocol: UDP}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {namespace: default, name: service-$1, labels: {kubernetes.io/service-name: service-$1}}
addressType: IPv4
ports: [{name: ask, port: $BACKEND_PORT, protocol: UDP}]
endpoints:
YAML
  while read -r backend; do
    printf '  - {addresses: [%s], nodeName: b, conditions: {ready: true}}\n' "$backend"
  done < <(backends_of "$1")
}

manifests() {
  local number backend
  node a "$NODE_IP" 10.244.1.0/24
  node b "$REMOTE_IP" 10.244.2.0/24
  pod client a "$POD_IP" "overlane.io/interface: podport, overlane.io/mac: \"$POD_MAC\""
  for ((number = 0; number < SERVICES; number++)); do
    while read -r backend; do pod "backend-${backend//./-}" b "$backend" ''; done < <(backends_of "$number")
    service "$number"
  done
}

ask() { "$(program overlane)" --socket "$DATAPLANE" --control-socket "$CONTROL" -o json "$@" 2> /dev/null; }
ready() {
  ask status | jq -e '.node != null and .peers >= 1 and .local_endpoints >= 1' > /dev/null &&
    ask endpoint list | jq -e '[.. | objects | select(.state? == "ready")] | length >= 1' > /dev/null &&
    [ "$(ask service list | jq length)" = "$SERVICES" ]
}

peer_up() {
  local name
  mkdir -p "$RUN/manifests"
  config "$1" "$2" > "$RUN/node.yaml"
  manifests > "$RUN/manifests/cluster.yaml"
  start dataplane "$(program overlane-dataplane)" --socket "$DATAPLANE" --workers 1 --cpus "$WORKER_CPU" --polling busy \
    --transmit "${OVERLANE_TRANSMIT:-auto}"
  start control "$(program overlane-control)" --socket "$CONTROL" --config "$RUN/node.yaml" \
    --manifests "$RUN/manifests" --dataplane-socket "$DATAPLANE"
  if ! wait_until 15 ready; then
    for name in dataplane control; do running "$name" > /dev/null || say "overlane-$name is not running"; done
    die "Overlane is not ready after 15 s: $(tail -n 5 "$RUN/dataplane.log" "$RUN/control.log")"
  fi
}

peer "$@"
