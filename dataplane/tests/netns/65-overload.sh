#!/usr/bin/env bash
# Far more than can be carried: what is lost is counted, nothing is lost track of, and right
# afterwards everything works as before.
# shellcheck source=dataplane/tests/netns/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

SECONDS_OF_FLOOD=5
[ "$LONG" = quick ] || SECONDS_OF_FLOOD=60

# flood FROM-POD TO-ADDRESS PORT OPTIONS...: as fast as it can.
flood() { start "$1" iperf3 -u -b 0 -t "$SECONDS_OF_FLOOD" -c "$2" -p "$3" "${@:4}"; }
listen() {
  start "$1" iperf3 -s -p "$2"
  wait_until 5 at "$1" sh -c "ss -ltn | grep -q :$2" || die "iperf3 does not listen"
}
kernel_lost() { overlane_cli "$1" -o json drops | jq '[.kernel[]] | add // 0'; }
named_lost() { overlane_cli "$1" -o json drops | jq '[.reasons[].packets] | add // 0'; }
received() { status_of "$1" '[.workers[].received] | add'; }
answers() { at a-pod1 ping -n -c 20 -i 0.02 -W 1 "$1" | awk '/packets transmitted/ { print $4 }'; }

for workers in 1 2; do
  bed --workers "$workers" --pods 3
  check "pods talk" one_ping a-pod1 "$(pod_ip4 b 1)"
  pids=$(node_pid dataplane a) && pids+=" $(node_pid dataplane b)"
  free=$(status_of a '[.umems[].free] | add')
  for pod in 1 2 3; do listen "b-pod$pod" 5201; done
  listen a-pod3 5201
  before=$(received a)
  flood a-pod1 "$(pod_ip4 b 1)" 5201 -l 64
  flood a-pod2 "$(pod_ip6 b 2)" 5201 -l 1200
  # From one pod to two, and more than a packet can carry: fragments.
  flood b-pod3 "$(pod_ip4 a 3)" 5201 -l 4000
  for ((i = 0; i < 10; i++)); do
    sleep 0.4
    for node in a b; do closes "$node" >> "$WORK/open" 2>&1 || true; done
  done
  check "$workers worker(s): counters closed in 10 looks during the flood" equal "open looks" "$(cat "$WORK/open")" ""
  sleep $((SECONDS_OF_FLOOD - 4 > 0 ? SECONDS_OF_FLOOD - 4 : 0))
  check "$workers worker(s): a pod reaches the other node right afterwards" equal answers "$(sleep 0.5; answers "$(pod_ip4 b 1)")" 20
  check "$workers worker(s): and over IPv6" equal answers "$(answers "$(pod_ip6 b 2)")" 20
  check "$workers worker(s): the processes are the same" equal pids "$(node_pid dataplane a) $(node_pid dataplane b)" "$pids"
  stop_started
  sleep 1
  for node in a b; do
    check "$workers worker(s): counters of $node close" closes "$node"
    printf '# node %s received %d packets; the kernel lost %d on its sockets, the dataplane %d, by name:\n' \
      "$node" "$(received "$node")" "$(kernel_lost "$node")" "$(named_lost "$node")"
    overlane_cli "$node" -o json drops | jq -r '(.kernel | to_entries[] | "#   kernel \(.key): \(.value)"), (.reasons[] | "#   \(.reason): \(.packets)")'
  done
  check "$workers worker(s): it was a flood" at_least packets $(($(received a) - before)) 50000
  check "$workers worker(s): the loss has names" at_least packets $(($(kernel_lost a) + $(kernel_lost b) + $(named_lost a) + $(named_lost b))) 1
  check "$workers worker(s): no address of ours was refused" equal invalid \
    "$(for node in a b; do overlane_cli "$node" -o json drops | jq -r '.kernel | keys[]'; done | grep invalid || true)" ""
  # Rings of ports that were busy keep more frames for a while, but all are accounted for.
  printf '# free frames of a: %s before, %s after\n' "$free" "$(status_of a '[.umems[].free] | add')"
done
finish
