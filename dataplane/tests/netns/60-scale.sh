#!/usr/bin/env bash
# 250 pods on four workers: all of them are ready soon and talk, in 512 MB with the kernel's part.
# shellcheck source=dataplane/tests/netns/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=scripts/lib/manifests.sh
. "$SCRIPTS/lib/manifests.sh"

PODS_HERE=250
CPUS=$(allowed_cpus | head -n 2 | xargs)
# Two workers on each of the first two CPUs; four on the only one.
CPUS=${CPUS% *},${CPUS% *},${CPUS#* },${CPUS#* }

address_of() { printf '10.244.1.%s' $(($1 + 1)); }

# Pods with IPv4 only, made with as few processes as possible: each in its own namespace.
build_pods() {
  local i
  for ((i = 1; i <= PODS_HERE; i++)); do printf 'namespace=%s\n' "$(namespace "p$i")" >> "$STATE"; done
  for ((i = 1; i <= PODS_HERE; i++)); do printf 'netns add %s\n' "$(namespace "p$i")"; done > "$WORK/batch"
  ip -batch "$WORK/batch"
  for ((i = 1; i <= PODS_HERE; i++)); do
    printf 'link add p%s type veth peer name eth0 netns %s\n' "$i" "$(namespace "p$i")"
    printf 'link set p%s addrgenmode none\nlink set p%s up\n' "$i" "$i"
  done > "$WORK/batch"
  ip -n "$(namespace a)" -batch "$WORK/batch"
  for ((i = 1; i <= PODS_HERE; i++)); do
    printf 'link set eth0 addrgenmode none\nlink set eth0 up\naddress add %s/32 dev eth0\nroute add default via 169.254.1.1 dev eth0 onlink\n' \
      "$(address_of "$i")" | ip -n "$(namespace "p$i")" -batch -
  done
}

# All pods in one file, for both nodes.
write_pods() {
  local i node
  for ((i = 1; i <= PODS_HERE; i++)); do
    printf -- '---\napiVersion: v1\nkind: Pod\nmetadata: {namespace: default, name: p%s, annotations: {overlane.io/interface: p%s}}\n' "$i" "$i"
    printf 'spec: {nodeName: a, containers: [{name: shell, image: testbed}]}\nstatus: {phase: Running, podIP: %s, podIPs: [{ip: %s}]}\n' \
      "$(address_of "$i")" "$(address_of "$i")"
  done > "$WORK/pods"
  for node in a b; do
    rm -f "$RUN_DIR/$node/manifests/pod-a-"*.yaml
    put "$RUN_DIR/$node/manifests/pods-a.yaml" < "$WORK/pods"
  done
}

ready_pods() { endpoints_of a '[.. | objects | select(.state? == "ready")] | length'; }
all_ready() { equal "ready pods" "$(ready_pods)" "$PODS_HERE"; }
# AF_XDP sockets of the node's namespace.
xsk_count() { at a awk '$1 == "XDP" { print $3 }' /proc/net/protocols; }
meminfo() { awk -v name="$1:" '$1 == name { print $2 }' /proc/meminfo; }
rss() { awk '/^VmRSS:/ { print $2 }' "/proc/$1/status"; }
mb() { printf '%d' $(($1 / 1024)); }

ping_from() { ip netns exec "$(namespace "p$1")" ping -n -c 2 -i 0.2 -W 2 "$2" > /dev/null && echo "$1"; }
# answered ADDRESS: how many pods have an answer from it.
answered() {
  export PREFIX
  export -f ping_from namespace
  seq "$PODS_HERE" | xargs -P 8 -I% bash -c 'ping_from % '"$1" | wc -l
}

bed --no-processes --pods 1 --workers 4
link_in a delete pod1
began=$SECONDS
build_pods
write_pods
printf '# %d namespaces and veths made in %d s\n' "$PODS_HERE" $((SECONDS - began))
# The kernel frees and makes namespaces in the background.
sleep 2

available=$(meminfo MemAvailable) vmalloc=$(meminfo VmallocUsed) slab=$(meminfo Slab)
began=${EPOCHREALTIME/./}
check "the dataplane of a starts" launch dataplane a --workers 4 --cpus "$CPUS" --max-endpoints "$PODS_HERE"
check "control of a starts" start_control a
check "250 pods are ready within 60 s" wait_until 60 all_ready
printf '# %d pods ready %d ms after the start\n' "$(ready_pods)" $(((${EPOCHREALTIME/./} - began) / 1000))
pid=$(node_pid dataplane a)
used=$((available - $(meminfo MemAvailable)))
own=$(($(rss "$pid") + $(meminfo VmallocUsed) - vmalloc + $(meminfo Slab) - slab))
printf '# memory gone with 250 pods: %d MB in all; of these VmRSS %d MB, vmalloc %d MB, slab %d MB\n' \
  "$(mb "$used")" "$(mb "$(rss "$pid")")" "$(mb $(($(meminfo VmallocUsed) - vmalloc)))" "$(mb $(($(meminfo Slab) - slab)))"
status_of a '.umems[] | "# by its own arithmetic: \(.chunks) chunks, \(.sockets) sockets: \(.bytes / 1048576 | floor) MB + \(.kernel_bytes / 1048576 | floor) MB of the kernel"'
status_of a '.ports | group_by(.worker) | map("worker \(.[0].worker): \(length) ports") | "# " + join(", ")'
claimed=$(status_of a '[.umems[] | .bytes + .kernel_bytes] | add / 1048576 | ceil')
check "its arithmetic says 512 MB at most" at_most MB "$claimed" 512
check "every worker has 62 pods or 63" equal "pods by worker" \
  "$(endpoints_of a '[.. | objects | select(.state? == "ready") | .worker] | group_by(.) | map(length) | sort | map(tostring) | join(" ")')" "62 62 63 63"
check "one AF_XDP socket for each pod, four for the uplink, one for the host" equal sockets "$(xsk_count)" $((PODS_HERE + 5))
check "no port waits" equal warnings "$(status_of a '.warnings | length')" 0

testbed start-control b
launch dataplane b --workers 1 --polling adaptive
check "b knows them" wait_until 15 equal "remote endpoints" "$(sleep 2; status_of b .remote_endpoints)" "$PODS_HERE"
check "250 pods reach their gateway" equal pods "$(answered 169.254.1.1)" "$PODS_HERE"
check "250 pods reach a pod on the other node" equal pods "$(answered "$(pod_ip4 b 1)")" "$PODS_HERE"
check "the first reaches the last" one_ping p1 "$(address_of 250)"
check "counters of a close" closes a
used_after=$((available - $(meminfo MemAvailable)))

# The kernel takes some seconds to close 250 sockets of a process that was killed; its successor
# starts at once.
kill -KILL "$pid"
began=${EPOCHREALTIME/./}
check "killed, it starts again at once" eval 'rm -f "$RUN_DIR/a/dataplane.pid"; launch dataplane a --workers 4 --cpus "$CPUS" --max-endpoints "$PODS_HERE"'
sleep 0.5
check "250 pods are ready within 60 s" wait_until 60 all_ready
printf '# %d pods ready %d ms after the kill\n' "$(ready_pods)" $(((${EPOCHREALTIME/./} - began) / 1000))
check "250 pods reach a pod on the other node" equal pods "$(answered "$(pod_ip4 b 1)")" "$PODS_HERE"
pid=$(node_pid dataplane a)

sleep 1
from=$(cpu_ns "$pid")
sleep 5
printf '# four idle workers with 250 pods: %s %% of a CPU\n' "$(awk -v u=$(($(cpu_ns "$pid") - from)) 'BEGIN { printf "%.2f", u / 5e7 }')"

available=$(meminfo MemAvailable) began=${EPOCHREALTIME/./}
check "the dataplane stops" testbed stop-dataplane a
printf '# stopped in %d ms\n' $(((${EPOCHREALTIME/./} - began) / 1000))
check "no XDP program is left" not grep -q xdp <<< "$(ip -n "$(namespace a)" -d link show)"
check "the host port is gone" not link_in a show overlane0
check "no AF_XDP socket is left" equal sockets "$(xsk_count)" 0
sleep 3
freed=$(($(meminfo MemAvailable) - available))
printf '# memory gone with traffic: %d MB; back after the stop: %d MB\n' "$(mb "$used_after")" "$(mb "$freed")"
# Others use this machine's memory too, which makes what is available wander by more than this.
check "250 pods took 512 MB at most: process, slab and vmalloc" at_most MB "$(mb "$own")" 512
check "it ended by itself, without a complaint" not grep -qE 'ERROR|panic|killed' "$RUN_DIR/a/dataplane.log"
finish
