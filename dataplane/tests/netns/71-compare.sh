#!/usr/bin/env bash
# `overlane-perf compare`, two rounds of Overlane and the raw forwarder: figures that can be, ratios within rounds, and
# nothing left behind, also when it is interrupted.
# shellcheck source=dataplane/tests/netns/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

program overlane-perf > /dev/null || skip "needs overlane-perf: cargo build --release -p overlane-perf"
[ "$(nproc)" -ge 2 ] || skip "needs two CPUs"

RESULT=$WORK/compare.json
COMPARE=("$(program overlane-perf)" compare)
TWO=(--quick --job dnat-geneve --peers "overlane,raw")
compare_to_file() { "${COMPARE[@]}" "${TWO[@]}" --rounds 2 -o json > "$RESULT"; }
says() { jq -e "$1" "$RESULT"; }
nothing_left() {
  local left
  left=$(ip netns list | grep '^ovp-'; ls -d /run/overlane-perf 2> /dev/null || true)
  [ -z "$left" ] || { echo "left behind: $left"; return 1; }
}
# interrupted: by Ctrl-C in the middle of a peer's time.
interrupted() {
  local pid status=0
  "${COMPARE[@]}" "${TWO[@]}" --rounds 9 > "$WORK/interrupted" 2>&1 &
  pid=$!
  wait_until 20 test -e /run/overlane-perf/dataplane.sock || return 1
  sleep 1
  kill -INT "$pid"
  wait "$pid" || status=$?
  cat "$WORK/interrupted"
  equal "exit status" "$status" 1
}

check "it compares" compare_to_file
check "two rows of two rounds" says '[.result.rows[] | select(.rounds == 2) | .peer] == ["overlane", "raw"]'
check "both forward, by a worker with a cost" says '[.result.rows[] | .pps.median > 10000 and .worker_ns.median > 100 and .all_in_ns.median >= .worker_ns.median] | all'
check "their ratio is one that can be" says '.result.rows[1].overlane_pps_ratio.median | . > 0.3 and . < 3'
check "round trips are answered" says '[.result.rows[].round_trips | .answered > 1000 and .p50_us > 1 and .p50_us <= .p99_us] | all'
check "both were proved" says '[.result.proofs[] | .peer] == ["overlane", "raw"]'
check "nothing is left" nothing_left
check "interrupted it ends, and says so" interrupted
check "and leaves nothing" nothing_left
check "a peer that does not exist is refused" not "${COMPARE[@]}" --peers no-such-peer
finish
