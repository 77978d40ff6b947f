#!/usr/bin/env bash
# The raw AF_XDP forwarder: the dataplane's ports, and nothing between them. It only moves frames.
# shellcheck source=perf/peers/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

peer_available() { program overlane-perf > /dev/null; }
peer_proof() { printf move; }
peer_workers() { echo 'raw forwarder'; }

peer_up() {
  start raw "$(program overlane-perf)" raw podport up0 --cpu "$WORKER_CPU" -o json
  wait_until 10 says raw 'forwarding between' || die "the raw forwarder does not start"
}

peer "$@"
