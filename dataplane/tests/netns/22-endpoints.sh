#!/usr/bin/env bash
# Services without slices: their endpoints are the pods that they select, ready or on their way out,
# near or far, each with its own number for a port's name; a load balancer is told where some are ready.
# shellcheck source=dataplane/tests/netns/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

VIP4=10.96.0.20 VIP6=fd98::14 NODE_PORT=30080 HEALTH_PORT=30090
# What each pod calls http.
declare -A HTTP=([a]=8080 [b]=9090)
MODES_OF=''

# pod1 NODE [READY [MORE]]: the first pod of the node, with more metadata.
pod1() {
  local named="ports: [{name: http, containerPort: ${HTTP[$1]}}]"
  { pod_manifest "$1" 1 | sed "s|image: testbed}|image: testbed, $named}|; s|^  namespace: default|&${3:+\n  $3}|"
    printf '  conditions: [{type: Ready, status: "%s"}]\n' "${2:-True}"
  } | everywhere "pod-$1-pod1"
}
ENDING='deletionTimestamp: "2026-01-01T00:00:00Z"'

zone() { node_manifest "$1" | sed "s|^  name: $1|&\n  labels: {topology.kubernetes.io/zone: $2}|" | everywhere "node-$1"; }

# service IP-MODE [MORE]: a load balancer's, whose address is that of the host outside.
service() {
  everywhere service-web <<YAML
apiVersion: v1
kind: Service
metadata: {namespace: default, name: web}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  healthCheckNodePort: $HEALTH_PORT
  clusterIPs: [$VIP4, "$VIP6"]
  clusterIP: $VIP4
  ipFamilies: [IPv4, IPv6]
  selector: {app: pod1}
  ports: [{name: web, port: 80, targetPort: http, nodePort: $NODE_PORT}]
  ${2:-}
status: {loadBalancer: {ingress: [{ip: $EXT4, ipMode: $1}]}}
YAML
}

# answering NAME URL WHO: in 20 requests from there these, and no others, answer.
answering() {
  local n who
  who=$(for ((n = 0; n < 20; n++)); do get "$1" "$2" --max-time 2; done | awk '{ print $1 }' | sort -u | xargs)
  equal "who answers" "$who" "$3"
}
# served WHO: pods of both nodes are, over both families.
served() {
  local from address
  for from in a-pod2 b-pod2; do
    for address in $VIP4 $VIP6; do answering $from "http://$(in_url "$address")/" "$1" || return 1; done
  done
}
# healthy NODE STATUS COUNT: what the load balancer is told there.
healthy() {
  local said
  said=$(get ext "http://$("node_ip4" "$1"):$HEALTH_PORT/" -w '%{http_code}')
  equal "status" "${said: -3}" "$2"
  equal "endpoints" "$(jq -r .localEndpoints <<< "${said%???}")" "$3"
}
node_port() { answering ext "http://$(node_ip4 "$1"):$NODE_PORT/" "$2"; }
sees_client() { equal "the answer" "$(get ext "http://$(node_ip4 "$1"):$NODE_PORT/")" "$1-pod1 $EXT4"; }

bed --mode geneve
web a-pod1 "${HTTP[a]}"
web b-pod1 "${HTTP[b]}"
web ext 80
pod1 a
pod1 b
service Proxy
check "both pods answer, by their own number for the port's name" wait_until 5 served "a-pod1 b-pod1"
for node in a b; do
  check "the load balancer is told of $node" wait_until 3 healthy "$node" 200 1
  check "and its clients are seen at $node, by its own pod" sees_client "$node"
done
check "ipMode Proxy: pods go by the load balancer itself" equal answer "$(get a-pod1 "http://$EXT4/")" "ext $(node_ip4 a)"
service VIP
check "ipMode VIP: pods do not" wait_until 5 answering a-pod2 "http://$EXT4/" "a-pod1 b-pod1"
service Proxy

service Proxy 'trafficDistribution: PreferSameNode'
for node in a b; do
  check "a service that prefers the client's node: at $node" wait_until 5 answering "$node-pod2" "http://$VIP4/" "$node-pod1"
done
service Proxy 'trafficDistribution: PreferSameZone'
check "one that prefers its zone, without zones" wait_until 5 served "a-pod1 b-pod1"
zone a west
zone b east
for node in a b; do
  check "one that prefers its zone: at $node" wait_until 5 answering "$node-pod2" "http://[$VIP6]/" "$node-pod1"
done
service Proxy

pod1 b False
check "one that is not ready gets nobody" wait_until 5 served a-pod1
check "the load balancer is told so" wait_until 3 healthy b 503 0
check "and of the other still" healthy a 200 1
check "whom it sends there all the same is dropped by name" \
  dropped b service_no_local_backend get ext "http://$(node_ip4 b):$NODE_PORT/" --max-time 1
check "elsewhere they are served" node_port a a-pod1

service Proxy 'publishNotReadyAddresses: true'
check "published all the same, it is as the others" wait_until 5 served "a-pod1 b-pod1"
check "to the load balancer too" wait_until 3 healthy b 200 1
service Proxy

pod1 b True "$ENDING"
check "one on its way out gets nobody new" wait_until 5 served a-pod1
pod1 a False
check "unless there is no other" wait_until 5 served b-pod1
check "of which the load balancer is told nothing" wait_until 3 healthy b 503 0
check "though its clients are served there" sees_client b
pod1 b False "$ENDING"
check "and when it is not even serving, nobody" wait_until 5 refused a-pod2 "http://$VIP4/"

gone service-web
sed 's/^  //' <<'YAML' | everywhere service-others
  {apiVersion: v1, kind: Service, metadata: {namespace: default, name: headless}, spec: {clusterIP: None, selector: {app: pod1}, ports: [{port: 80}]}}
  ---
  {apiVersion: v1, kind: Service, metadata: {namespace: default, name: named}, spec: {type: ExternalName, externalName: example.org}}
YAML
notes() { status_of a '.control.notes | join(" ")'; }
said() { [[ $(notes) == *"default/headless is headless"* && $(notes) == *"default/named is an ExternalName"* ]]; }
check "headless services and names are said to need nothing" wait_until 5 said
check "and nothing is installed" equal services "$(overlane_cli a -o json service list | jq length)" 0
for node in $NODE_NAMES; do check "counters of $node close" closes "$node"; done
finish
