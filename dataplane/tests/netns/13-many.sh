#!/usr/bin/env bash
# Three nodes with two workers each; and a mode that one node has of its own.
# shellcheck source=dataplane/tests/netns/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

bed --nodes 3 --workers 2 --pods 3
for from in $NODE_NAMES; do
  for to in $NODE_NAMES; do
    for pod in 1 3; do
      check "$from-pod2 to $to-pod$pod, IPv4" one_ping "$from-pod2" "$(pod_ip4 "$to" "$pod")"
      check "$from-pod2 to $to-pod$pod, IPv6" one_ping "$from-pod2" "$(pod_ip6 "$to" "$pod")"
    done
  done
done
for node in $NODE_NAMES; do check "counters of $node close" closes "$node"; done

bed --mode geneve --mode-of a=native --mode-of b=native
check "native by annotation, IPv4" one_ping a-pod1 "$(pod_ip4 b 1)"
check "native by annotation, IPv6" one_ping a-pod1 "$(pod_ip6 b 1)"
finish
