#!/usr/bin/env bash
# Each peer that Overlane is compared with, and Overlane on the same bed, does each of its jobs and leaves nothing
# behind.
# shellcheck source=dataplane/tests/netns/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

PEERS=$ROOT/perf/peers
program overlane-perf > /dev/null || skip "needs overlane-perf: cargo build --release -p overlane-perf"
exec 7> /run/overlane-perf.lock
flock -w 200 7 || die "the bed of the measurements is in use (/run/overlane-perf.lock)"
export OVERLANE_PERF_LOCKED=1

last=''
take_down() { [ -z "$last" ] || "$PEERS/$last.sh" down > /dev/null 2>&1 || true; }
trap 'take_down; cleanup' EXIT

# one_worker PEER: somebody works, and on the CPU that is meant.
one_worker() {
  local thread cpu
  cpu=$("$PEERS/$1.sh" cpu)
  thread=$("$PEERS/$1.sh" pids | sed -n 1p)
  [ -n "$thread" ] || { echo "nobody works"; return 1; }
  thread=${thread%% *}
  equal "CPU" "$(awk '/^Cpus_allowed_list:/ { print $2 }' "/proc/${thread#*/}/status")" "$cpu"
}

# left_over: what a peer should have taken along. The kernel takes a namespace down after it is gone.
left_over() {
  local left
  left=$(ip netns list | grep '^ovp-'; pgrep -a '^napi/podport-'; pgrep -a '^napi/up0-'; ls -d /run/overlane-perf /run/dpdk/overlane-perf 2> /dev/null || true)
  [ -n "$left" ] && printf '%s\n' "$left"
}
nothing_left() {
  wait_until 5 not left_over || return 1
  equal "huge pages" "$(awk '/^HugePages_Total:/ { print $2 }' /proc/meminfo)" "$huge"
}

huge=$(awk '/^HugePages_Total:/ { print $2 }' /proc/meminfo)
for peer in overlane raw testpmd kernel-nft kernel-iptables kernel-ipvs ovs-dpdk; do
  for job in dnat-geneve dnat-vxlan snat; do
    # What only moves frames does the same in each job.
    case $LONG-$peer-$job in quick-raw-dnat-geneve | quick-testpmd-dnat-geneve) ;; quick-raw-* | quick-testpmd-*) continue ;; esac
    if ! why=$("$PEERS/$peer.sh" available $job 2>&1); then
      printf '# %s, %s: skipped: %s\n' "$peer" "$job" "$why"
      continue
    fi
    last=$peer
    check "$peer, $job: it comes up" "$PEERS/$peer.sh" up "$job" 1000
    check "$peer, $job: a worker on its CPU" one_worker "$peer"
    check "$peer, $job: out translated and encapsulated, back as it was asked" "$PEERS/$peer.sh" prove "$job"
    check "$peer, $job: it goes" "$PEERS/$peer.sh" down
    check "$peer, $job: nothing is left" nothing_left
    last=''
  done
done
check "an unknown job is refused" not "$PEERS/raw.sh" up no-such-job
check "and says which there are" sh -c "'$PEERS/raw.sh' up no-such-job 2>&1 | grep -q dnat-geneve"
finish
