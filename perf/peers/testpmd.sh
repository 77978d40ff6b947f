#!/usr/bin/env bash
# DPDK's testpmd in io mode with net_af_xdp: somebody else's raw AF_XDP forwarder. It only moves
# frames.
# shellcheck source=perf/peers/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

peer_available() {
  command -v dpdk-testpmd > /dev/null || { say "dpdk-testpmd is not installed: scripts/install-deps.sh --peers"; return 1; }
  compgen -G '/usr/lib/*/dpdk/pmds-*/librte_net_af_xdp.so' > /dev/null ||
    { say "DPDK's net_af_xdp is not installed: scripts/install-deps.sh --peers"; return 1; }
}
peer_proof() { printf move; }
peer_workers() { echo 'testpmd (rte-worker|lcore-worker|dpdk-worker).*'; }

peer_up() {
  # No huge pages, no PCI devices, and no dispatcher program, which wants a kernel with its type
  # information. The worker is the second lcore.
  start testpmd env LIBXDP_SKIP_DISPATCHER=1 dpdk-testpmd --lcores "0@$OTHER_CPU,1@$WORKER_CPU" --no-huge -m 256 \
    --no-pci --no-shconf --no-telemetry --file-prefix overlane-perf --vdev net_af_xdp0,iface=podport --vdev net_af_xdp1,iface=up0 \
    -- --forward-mode=io --nb-cores=1 --auto-start --total-num-mbufs=32768 --stats-period=3600
  wait_until 20 says testpmd 'io packet forwarding - ports=2' || die "testpmd does not start: $(tail -n 3 "$RUN/testpmd.log")"
}

peer "$@"
