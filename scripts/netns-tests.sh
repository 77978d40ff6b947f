#!/usr/bin/env bash
# Run the scenarios of dataplane/tests/netns, one after the other, on a testbed of their own.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib/common.sh
. "$here/lib/common.sh"

usage() {
  cat <<'TEXT'
usage: netns-tests.sh [--quick|--long] [--verbose] [NAME...]    names or parts of names; all without

One line each: 'ok NAME (N checks, N s)', 'FAILED NAME (...)' or 'skipped NAME: why'.
The programs are taken from target/release, or from OVERLANE_BIN.
TEXT
}

LENGTH=quick VERBOSE=no NAMES=()
for argument in "$@"; do
  case $argument in
    --quick) LENGTH=quick ;;
    --long) LENGTH=long ;;
    --verbose) VERBOSE=yes ;;
    -h | --help) usage; exit 0 ;;
    -*) usage >&2; exit 2 ;;
    *) NAMES+=("$argument") ;;
  esac
done

need_root "netns-tests.sh"
export OVERLANE_TEST_LENGTH=$LENGTH
for name in overlane-dataplane overlane-control overlane; do program "$name" > /dev/null || exit 1; done

chosen() {
  local name
  [ ${#NAMES[@]} != 0 ] || return 0
  for name in "${NAMES[@]}"; do [[ $1 != *"$name"* ]] || return 0; done
  return 1
}

log=$(mktemp /tmp/overlane-scenario.XXXXXX)
trap 'rm -f "$log"' EXIT
failures=0 count=0
for file in "$ROOT"/dataplane/tests/netns/[0-9]*.sh; do
  name=$(basename "$file" .sh)
  chosen "$name" || continue
  # One scenario at a time on the machine: they share names.
  exec 8> /run/overlane-netns-tests.lock
  flock -w 900 8 || die "other scenarios have been at work for 15 minutes (/run/overlane-netns-tests.lock)"
  count=$((count + 1)) began=$SECONDS status=0
  OVERLANE_SCENARIO_LOCKED=1 timeout --kill-after 20 300 bash "$file" > "$log" 2>&1 8>&- || status=$?
  # Whatever happened to it, the next one starts from nothing.
  OVERLANE_TESTBED_PREFIX=ovt OVERLANE_RUN_DIR=/run/overlane-test "$here/testbed.sh" down > /dev/null 2>&1 8>&- || true
  exec 8>&-
  took=$((SECONDS - began))
  case $status in
    0) printf 'ok %s (%s checks, %d s)\n' "$name" "$(grep -c '^  ok ' "$log" || true)" "$took" ;;
    77) printf 'skipped %s: %s\n' "$name" "$(sed -n 's/^# skipped: //p' "$log")" ;;
    *)
      failures=$((failures + 1))
      [ "$VERBOSE" = yes ] || grep -v '^  ok ' "$log" || true
      if [ "$status" = 124 ] || [ "$status" = 137 ]; then printf 'FAILED %s (not done after 300 s)\n' "$name"
      else printf 'FAILED %s (%s of %s checks, %d s)\n' "$name" "$(grep -c '^  BAD ' "$log" || true)" "$(grep -cE '^  (ok|BAD) ' "$log" || true)" "$took"; fi
      # Again, after all that the scenario had to show: the end of a log is what is kept of it.
      grep -A 9 '^  BAD ' "$log" | grep -v '^  ok ' || true ;;
  esac
  if [ "$VERBOSE" = yes ]; then cat "$log"; fi
done
[ "$count" != 0 ] || die "no scenario is called '${NAMES[*]}'"
[ "$failures" = 0 ]
