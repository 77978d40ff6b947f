#!/usr/bin/env bash
# virtio.sh copy|zero-copy: two nodes whose uplinks are multi-queue virtio NICs, back to back.
# Two workers each; all queues of a NIC belong to its node. The argument says how the kernel at
# hand uses them: `overlane status` must say the same.
# shellcheck disable=SC2034,SC2153
# shellcheck source=dataplane/tests/vm/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=scripts/lib/manifests.sh
. "$SCRIPTS/lib/manifests.sh"

WANTED=$1
NODES=2 PODS=2 WORKERS=2 VNI=1 TUNNEL_PORT='' MODES_OF='' POLLING=adaptive LOG_LEVEL=''

# nic_node NODE DEVICE: a namespace with that NIC as eth0, two queues in use.
nic_node() {
  local node=$1 device=$2 pod
  new_namespace "$node"
  ip link set "$device" down
  ip link set "$device" netns "$(namespace "$node")" name eth0
  link_in "$node" set eth0 mtu "$MTU"
  at "$node" ethtool -L eth0 combined "$WORKERS"
  link_in "$node" set eth0 up
  address_in "$node" "$(node_ip4 "$node")/16" eth0
  address_in "$node" "$(node_ip6 "$node")/48" eth0
  for ((pod = 1; pod <= PODS; pod++)); do build_pod "$node" "$pod"; done
}

# uplinks NODE JQ-FILTER: of each of its uplink's ports.
uplinks() { status_of "$1" "[.ports[] | select(.kind == \"uplink\")] | $2"; }

mode_is() {
  local zero_copy=false
  [ "$WANTED" = copy ] || zero_copy=true
  equal "ports of the uplink" "$(uplinks "$1" length)" "$WORKERS"
  equal "zero-copy" "$(uplinks "$1" 'map(.zero_copy) | unique | map(tostring) | join(" ")')" "$zero_copy"
  equal "workers of the queues" "$(uplinks "$1" 'map("\(.queue):\(.worker)") | sort | join(" ")')" "0:0 1:1"
}

# no_other_queues NODE: with a program attached the driver of virtio adds queues for XDP's own
# sending if the device has any left, and the device receives on those too.
no_other_queues() {
  equal "receive queues" "$(at "$1" sh -c 'ls -d /sys/class/net/eth0/queues/rx-* | wc -l')" "$WORKERS"
}

# The same on the screen, in the row of each uplink queue.
screen_says() {
  local rows
  rows=$(overlane_cli "$1" status | grep -E '(^|[^a-z])uplink .*eth0')
  printf '%s\n' "$rows"
  equal "rows" "$(grep -cwE "$2" <<< "$rows")" "$WORKERS"
}

# copied_as_wanted NODE: frames cross from one UMEM to another when the NIC has its own, and
# not when there is only one. (Copy mode with a UMEM for each worker copies what changes hands.)
copied_as_wanted() {
  local copied umems
  copied=$(status_of "$1" '[.workers[].copied] | add')
  umems=$(status_of "$1" '.umems | length')
  if [ "$WANTED" = zero-copy ]; then at_least "frames copied" "$copied" 1000
  elif [ "$umems" = 1 ]; then equal "frames copied" "$copied" 0; fi
}

all_queues_used() {
  at_least "frames received on the idlest queue" "$(uplinks "$1" 'map(.rx_packets) | min')" 20
  at_least "frames sent on the idlest queue" "$(uplinks "$1" 'map(.tx_packets) | min')" 20
}

# no_invalid NODE: the kernel was given no address that it did not like.
no_invalid() {
  equal "invalid descriptors" "$(status_of "$1" \
    '[.ports[].kernel_drops | to_entries[] | select(.key | test("invalid")) | .value] | add // 0')" 0
}

# nothing_held NODE: no worker has a frame that it has not sent, dropped or given to the host.
nothing_held() {
  equal "frames held" "$(status_of "$1" '[.workers[].held] | add')" 0
}

iperf_listens() { [ -n "$(at b-pod1 ss -Hltn 'sport = :5201')" ]; }

# streams FROM TO-ADDRESS OPTIONS...: iperf3 against the server in the other pod.
streams() {
  local bytes
  iperf "$1" "$2" "$WORK/iperf.json" "${@:3}" || { jq -r .error "$WORK/iperf.json"; return 1; }
  bytes=$(jq '.end.sum_received.bytes // .end.sum.bytes' "$WORK/iperf.json")
  at_least "bytes received" "$bytes" 1000000
}

talk_between() { # talk_between POD OTHER-NODE OTHER-POD
  local family
  for family in 4 6; do
    check "$1 to $2-pod$3: ping IPv$family" one_ping "$1" "$("pod_ip$family" "$2" "$3")"
    check "$1 to $2-pod$3: TCP IPv$family" tcp_echo "$1" "$("pod_ip$family" "$2" "$3")"
    check "$1 to $2-pod$3: UDP IPv$family" udp_echo "$1" "$("pod_ip$family" "$2" "$3")"
  done
}

# Stopped by TERM within 10 s, with nothing left behind.
stops_cleanly() {
  local pid
  pid=$(node_pid dataplane "$1")
  kill -TERM "$pid"
  wait_until 10 all_gone "$pid" || { echo "process $pid is still there after 10 s"; return 1; }
  not grep -E ' (ERROR|WARN) |panicked' "$RUN_DIR/$1/dataplane.log"
  not grep -q xdp <<< "$(link_in "$1" show eth0)"
  not ip -n "$(namespace "$1")" link show overlane0 2> /dev/null
}

start_again() { start_dataplane "$1" && patient_ready "$1"; }

pods_talk() { wait_until 20 at a-pod1 ping -n -c 1 -W 2 "$(pod_ip4 b 1)"; }

nodes_talk() {
  one_ping a "$(node_ip4 b)"
  one_ping b "$(node_ip6 a)"
}

printf '# kernel %s, %s\n' "$(uname -r)" "$WANTED"
mkdir -p "$RUN_DIR"
modprobe virtio_net 2> /dev/null || skip "kernel $(uname -r) has no virtio NIC"
for device in eth0 eth1; do
  [ -e "/sys/class/net/$device" ] || skip "the guest has no $device"
done
nic_node a eth0
nic_node b eth1
check "the nodes' kernels reach each other before anything is started" nodes_talk
write_manifests
start_all
patient_ready a b

for node in a b; do
  check "$node: all queues of the NIC are open" no_other_queues "$node"
  check "$node: the uplink's queues are used in $WANTED mode" mode_is "$node"
  check "$node: the screen says so" screen_says "$node" "$WANTED"
done
for node in a b; do for pod in 1 2; do serve "$node-pod$pod"; done; done
check "the nodes' kernels still reach each other" nodes_talk
talk_between a-pod1 b 1
talk_between b-pod2 a 2
check "the largest packet" one_ping a-pod1 "$(pod_ip4 b 2)" -M "do" -s 1422
check "pods of one node: ping" one_ping a-pod1 "$(pod_ip4 a 2)"

start b-pod1 iperf3 -s
wait_until 60 iperf_listens || die "iperf3 did not start: $(cat "$STARTED_LOG")"
check "8 TCP streams out" streams a-pod1 "$(pod_ip4 b 1)" -n 4M -P 8
check "8 TCP streams in, IPv6" streams a-pod1 "$(pod_ip6 b 1)" -n 4M -P 8 -R
check "8 UDP streams" streams a-pod1 "$(pod_ip4 b 1)" -u -l 1000 -b 1M -t 3 -P 8

for node in a b; do
  check "$node: both queues have work" all_queues_used "$node"
  check "$node: frames copied between UMEMs" copied_as_wanted "$node"
  check "$node: no invalid descriptors" no_invalid "$node"
  check "$node: nothing is held" wait_until 5 nothing_held "$node"
  check "$node: counters close" closes "$node"
  check "$node: no complaints" nothing_warned "$node"
done

check "a dataplane stops cleanly" stops_cleanly a
check "the nodes' kernels reach each other without it" nodes_talk
check "it starts again on the same queues" start_again a
check "and in the same mode" mode_is a
check "and pods talk again" pods_talk
kill -KILL "$(node_pid dataplane b)"
check "after a sudden death it starts again as well" start_again b
check "and pods talk again" pods_talk
check "a: counters close" closes a
check "the other one stops cleanly" stops_cleanly b
check "the kernel has no complaints" no_kernel_complaints
status_of a '.workers[] | "# worker \(.worker): received \(.received) sent \(.sent) copied \(.copied)"' || true
finish
