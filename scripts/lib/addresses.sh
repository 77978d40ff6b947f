# shellcheck shell=bash disable=SC2034
# Names and addresses of the testbed. Other programs and people rely on them: keep them.
#
# Nodes are called a, b, c, ...; a node's number is 1 for a, 2 for b. PREFIX, RUN_DIR and MODE
# come from the caller: `ovl` and /run/overlane for people, others for tests that must not
# disturb a testbed that is up.

PREFIX=${OVERLANE_TESTBED_PREFIX:-ovl}
RUN_DIR=${OVERLANE_RUN_DIR:-/run/overlane}

MAX_NODES=14
MAX_PODS=200
ROUTER4=10.0.0.1
ROUTER6=fd00:10::1
EXT4=203.0.113.10
EXT6=2001:db8:113::10

node_letter() { local letters=abcdefghijklmn; printf '%s' "${letters:$1-1:1}"; }
node_number() { local letters=abcdefghijklmn before; before=${letters%%"$1"*}; printf '%s' $((${#before} + 1)); }

namespace() { printf '%s-%s' "$PREFIX" "$1"; }

node_ip4() { printf '10.0.1.%s' $(($(node_number "$1") + 3)); }
node_ip6() { printf 'fd00:10:0:1::%x' $(($(node_number "$1") + 3)); }

# Pods' ranges: each node's own, and the whole cluster's. In flat mode pods live in the node
# network, in a part of it for each node: 10.0.65.0/24 and fd00:10:0:65::/64 on a.
pod_net4() {
  if [ "$MODE" = flat ]; then printf '10.0.%s' $(($(node_number "$1") + 64))
  else printf '10.244.%s' "$(node_number "$1")"; fi
}
pod_net6() {
  if [ "$MODE" = flat ]; then printf 'fd00:10:0:%s' $(($(node_number "$1") + 64))
  else printf 'fd12:3456:0:%x' "$(node_number "$1")"; fi
}
cluster_net4() { if [ "$MODE" = flat ]; then printf 10.0.64.0/18; else printf 10.244.0.0/16; fi; }
cluster_net6() { if [ "$MODE" = flat ]; then printf fd00:10:0:40::/58; else printf fd12:3456::/48; fi; }

# pod_ip4 NODE POD: pods are numbered from 1 on each node.
pod_ip4() { printf '%s.%s' "$(pod_net4 "$1")" $(($2 + 9)); }
pod_ip6() { printf '%s::%x' "$(pod_net6 "$1")" $(($2 + 9)); }
