#!/usr/bin/env bash
# Pods come and go while others talk: a new manifest is live soon, a removed one is gone, nobody else notices.
# shellcheck source=dataplane/tests/netns/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

ready_pods() { endpoints_of "$1" '[.. | objects | select(.state? == "ready")] | length'; }
knows_pods() { equal "ready pods of $1" "$(ready_pods "$1")" "$2"; }

bed --pods 2
start a-pod1 ping -n -i 0.01 -W 1 "$(pod_ip4 b 1)"
pings=$STARTED log=$STARTED_LOG

check "the third pod's veth is made" build_pod a 3
began=${EPOCHREALTIME/./}
for node in $NODE_NAMES; do pod_manifest a 3 | put "$RUN_DIR/$node/manifests/pod-a-pod3.yaml"; done
check "it is ready within 3 s" wait_until 3 knows_pods a 3
printf '# ready after %d ms\n' $(((${EPOCHREALTIME/./} - began) / 1000))
check "it reaches the other node, IPv4" wait_until 3 at a-pod3 ping -n -c 1 -W 1 "$(pod_ip4 b 2)"
check "it reaches the other node, IPv6" wait_until 3 at a-pod3 ping -n -c 1 -W 1 "$(pod_ip6 b 2)"

for node in $NODE_NAMES; do rm "$RUN_DIR/$node/manifests/pod-a-pod3.yaml"; done
check "its manifest gone, so is it" wait_until 3 knows_pods a 2
check "and nobody reaches it" no_ping b-pod2 "$(pod_ip4 a 3)"
for node in $NODE_NAMES; do pod_manifest a 3 | put "$RUN_DIR/$node/manifests/pod-a-pod3.yaml"; done
check "it returns" wait_until 3 knows_pods a 3
check "and talks" wait_until 3 at a-pod3 ping -n -c 1 -W 1 "$(pod_ip4 b 2)"
link_in a delete pod3
check "its veth deleted under it, the others go on" one_ping a-pod2 "$(pod_ip4 b 2)"
check "it is not called ready any more" wait_until 3 knows_pods a 2

stop_one "$pings" INT
check "not one ping of the others was lost" equal lost "$(lost_pings "$log")" 0
check "counters of a close" closes a
finish
