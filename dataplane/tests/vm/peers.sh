#!/usr/bin/env bash
# The kernel as a peer of the measurements, where it has a geneve device and IPVS: each translates and encapsulates.
# shellcheck disable=SC2153
# shellcheck source=dataplane/tests/vm/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

PEERS=$ROOT/perf/peers
export OVERLANE_PERF_LOCKED=1
for module in veth geneve vxlan dummy ip_vs ip_vs_rr nft_nat nft_masq nft_chain_nat; do modprobe -q "$module" || true; done

for peer in kernel-nft kernel-ipvs; do
  for job in dnat-geneve dnat-vxlan; do
    check "$peer, $job: it can be" "$PEERS/$peer.sh" available "$job" 1000
    check "$peer, $job: it comes up" "$PEERS/$peer.sh" up "$job" 1000
    check "$peer, $job: out translated and encapsulated, back as it was asked" "$PEERS/$peer.sh" prove "$job"
    check "$peer, $job: it goes" "$PEERS/$peer.sh" down
  done
done
finish
