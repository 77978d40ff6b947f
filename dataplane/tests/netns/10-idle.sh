#!/usr/bin/env bash
# With adaptive polling an idle dataplane uses less than 2 % of one CPU.
# shellcheck source=dataplane/tests/netns/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

bed --polling adaptive
one_ping a-pod1 "$(pod_ip4 b 1)" > /dev/null
sleep 2
for node in $NODE_NAMES; do
  pid=$(node_pid dataplane "$node")
  from=$(cpu_ns "$pid") began=${EPOCHREALTIME/./}
  sleep 5
  used=$(($(cpu_ns "$pid") - from)) passed=$((${EPOCHREALTIME/./} - began))
  percent=$(awk -v u="$used" -v p="$passed" 'BEGIN { printf "%.2f", u / p / 10 }')
  printf '# dataplane of node %s: %s %%\n' "$node" "$percent"
  check "the dataplane of node $node uses less than 2 %" at_most percent "$percent" 2
done
check "it still forwards" one_ping a-pod1 "$(pod_ip4 b 1)"
finish
