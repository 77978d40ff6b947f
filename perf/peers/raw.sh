#!/usr/bin/env bash
# The raw AF_XDP forwarder: the dataplane's ports, and nothing between them. It only moves frames.
#
# For `overlane-perf raw-costs`: OVERLANE_RAW_OPTIONS, more options of `overlane-perf raw`; OVERLANE_FAR_END,
# how wire0 receives: gro, deferred=NANOSECONDS (with gro: NAPI after that time, not for each frame), threaded=CPU
# (with gro: NAPI on a thread, pinned), rps=CPU.
# shellcheck source=perf/peers/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

peer_available() { program overlane-perf > /dev/null; }
peer_proof() { printf move; }
peer_workers() { echo 'raw forwarder'; }

far_threads() {
  local thread
  for thread in $(pgrep '^napi/wire0-'); do printf '%s/%s far-end\n' "$thread" "$thread"; done
}
have_far_threads() { [ -n "$(far_threads)" ]; }
# What the far end's threads take is the forwarder's: it is in its own time where there are none.
workers() {
  threads raw | grep -E '/[0-9]+ forwarder$' || true
  far_threads
}

far_end() { # far_end SETTING
  local device=/sys/class/net/wire0 thread
  case $1 in
    gro) ip netns exec "$WIRE_NS" ethtool -K wire0 gro on > /dev/null ;;
    deferred=*) ip netns exec "$WIRE_NS" sh -c "echo 1 > $device/napi_defer_hard_irqs
      echo ${1#*=} > $device/gro_flush_timeout" ;;
    rps=*) ip netns exec "$WIRE_NS" sh -c "echo $((1 << ${1#*=})) > $device/queues/rx-0/rps_cpus" ;;
    threaded=*)
      ip netns exec "$WIRE_NS" sh -c "echo 1 > $device/threaded"
      wait_until 5 have_far_threads || die "the kernel has made no NAPI threads"
      for thread in $(far_threads | cut -d/ -f1); do
        taskset -pc "${1#*=}" "$thread" > /dev/null
        renice -n "$(level)" -p "$thread" > /dev/null
      done
      ;;
    *) die "OVERLANE_FAR_END: no setting '$1'" ;;
  esac
}

peer_up() {
  local options settings setting
  read -ra options <<< "${OVERLANE_RAW_OPTIONS:-}"
  read -ra settings <<< "${OVERLANE_FAR_END:-}"
  start raw "$(program overlane-perf)" raw podport up0 --cpu "$WORKER_CPU" "${options[@]}" -o json
  wait_until 10 says raw 'forwarding between' || die "the raw forwarder does not start"
  for setting in "${settings[@]}"; do far_end "$setting"; done
}

peer "$@"
