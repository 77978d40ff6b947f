#!/usr/bin/env bash
# scripts/pktgen.sh: the kernel's packet generator in a pod, through two dataplanes, to a pod of
# another node. What is sent at a modest rate arrives, but for what emulation is too slow for.
# shellcheck disable=SC2153
# shellcheck source=dataplane/tests/vm/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# lost: what the kernel dropped in front of the dataplanes so far. In emulation those wait for the
# CPU longer than an idle port has room for.
lost() {
  local node
  for node in a b; do overlane_cli "$node" -o json drops; done |
    jq -s '[.[].kernel | (.rx_dropped // 0) + (.rx_ring_full // 0)] | add'
}
generate() {
  lost > "$WORK/before"
  "$ROOT/scripts/pktgen.sh" --from a-pod1 --to b-pod1 --seconds 4 -o json "$@" > "$WORK/result"
}
result() { jq -r "$1" "$WORK/result"; }

# arrived PACKETS: of at least so many, all that the dataplanes were given, with right checksums.
arrived() {
  local dropped
  dropped=$(($(lost) - $(cat "$WORK/before")))
  printf '%s; %s dropped by the kernel\n' "$(jq -c . "$WORK/result")" "$dropped"
  equal errors "$(result .sent.errors)" 0
  equal "wrong checksums" "$(result .received.wrong)" 0
  at_least packets "$(result .sent.packets)" "$1"
  at_least datagrams "$(result .received.datagrams)" $(($(result .sent.packets) / 2))
  equal "received and dropped by the kernel" $(($(result .received.datagrams) + dropped)) "$(result .sent.packets)"
}

[ ! -d /proc/net/pktgen ] || die "pktgen is loaded already"
modprobe -n pktgen 2> /dev/null || skip "kernel $(uname -r) has no pktgen"
printf '# kernel %s\n' "$(uname -r)"
patient_bed --mode geneve --nodes 2 --pods 1
for family in 4 6; do
  check "IPv$family: 300 packets a second" generate --family "$family" --rate 300
  check "IPv$family: they arrive" arrived 1000
  check "IPv$family: 100 flows, 512 bytes" generate --family "$family" --rate 300 --flows 100 --size 512
  check "IPv$family: they arrive, too" arrived 1000
done
check "flat out" generate --flows 1000
check "flat out: more than at a rate" at_least packets "$(result .sent.packets)" 4000
check "flat out: some arrive" at_least datagrams "$(result .received.datagrams)" 1000
printf '# %s\n' "$(jq -c . "$WORK/result")"
check "the module is gone again" test ! -d /proc/net/pktgen
check "counters of a close" closes a
check "counters of b close" closes b
check "the kernel has no complaints" no_kernel_complaints
finish
