# shellcheck shell=bash disable=SC2034
# What the scenarios in emulation share: everything of those in namespaces, and what a slow
# machine of our own needs besides.

# There is no udev in the guest that would make these.
[ -e /dev/fd ] || ln -s /proc/self/fd /dev/fd
[ -e /dev/stdin ] || ln -s /proc/self/fd/0 /dev/stdin
[ -e /dev/stdout ] || ln -s /proc/self/fd/1 /dev/stdout
[ -e /dev/stderr ] || ln -s /proc/self/fd/2 /dev/stderr

POLLING=adaptive LOG_LEVEL=''
VM_HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=dataplane/tests/netns/lib.sh
. "$VM_HERE/../netns/lib.sh"

# The guest is thrown away after the scenario, so nothing has to be tidied up, and a kernel that
# hangs there would hide what the scenario found.
trap 'rm -rf "$WORK"' EXIT

# no_kernel_complaints: the kernel has found nothing wrong with itself.
no_kernel_complaints() {
  local found
  found=$(dmesg | grep -E 'WARNING: |BUG: |Oops|Call Trace|UBSAN|refcount_t|general protection' || true)
  [ -z "$found" ] || { printf '%s\n' "$found"; return 1; }
}

# patient_ready NODE...: the programs are ready; in emulation that takes its time.
patient_ready() {
  local node
  for node in "$@"; do
    wait_until 300 node_ready "$node" || { show_state; die "node $node is not ready after 300 s"; }
  done
}

# patient_bed OPTIONS...: a testbed whose programs are waited for patiently.
patient_bed() {
  bed "$@" --no-processes
  start_all
  # shellcheck disable=SC2086
  patient_ready $NODE_NAMES
}

# serve NAME: as in the scenarios in namespaces, but more patient.
serve() {
  start "$1" python3 "$HERE/echo.py" serve 7000
  wait_until 60 grep -q ready "$STARTED_LOG" || die "the echo server in $1 did not start: $(cat "$STARTED_LOG")"
}

# nothing_warned NODE: the dataplane has no complaint of its own.
nothing_warned() { equal warnings "$(status_of "$1" '.warnings | join("; ")')" ''; }
