#!/usr/bin/env bash
# The bed alone: nobody forwards. To see what a generator costs by itself.
# shellcheck source=perf/peers/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

peer_available() { :; }
peer_workers() { :; }
peer_up() { :; }

peer "$@"
