#!/usr/bin/env bash
# VPP in memory: what a packet costs it where `overlane-perf pipeline` says what one costs Overlane.
# shellcheck source=scripts/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/lib/common.sh"
set -euo pipefail

PEERS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# Debian's own: it is the one that has scapy.
PYTHON=/usr/bin/python3
PAGES=/proc/sys/vm/nr_hugepages

usage() {
  cat << TEXT
usage: $(basename "$0") [OPTIONS]

Gives VPP packets by its own packet generator, without any driver, and takes turns with overlane-perf pipeline. VPP has one
worker on CPU 1 and its main thread on CPU 0. It touches no interface of this machine and leaves nothing behind.

  --scenario A,B    all (default), or some of: forward geneve-encap geneve-decap vxlan-encap
                    vxlan-decap vxlan-decap-bypass dnat dnat-geneve dnat-reply snat-out-cnat snat-in-cnat
                    snat-out-nat44 snat-in-nat44
  --flows N,M       numbers of flows (1000)
  --peers N         other nodes, each with a tunnel of its own (64)
  --vector N        packets that the generator makes at once, 256 at most (256)
  --rounds N        rounds; each is VPP, then Overlane (3)
  --seconds S       how long each is timed in a round (1.5)
  --huge-pages N    give VPP N huge pages of 2 MiB, and take them back (0: pages of 4 KiB); root. 640 are enough
                    for 50,000 flows, 1640 for a million. Without them it takes more than twice the time
  --alone           without Overlane
  -o table|json     how to write the result (table)

VPP names the program (default: vpp on the PATH); vppctl is looked for next to it and on the PATH.
Status: 0 done, 1 failed, 2 wrong arguments, 3 there is no VPP (or scapy) here.
TEXT
}

missing() { say "$1"; exit 3; }

# need_number OPTION VALUE
need_number() { [[ ${2:-} =~ ^[0-9]{1,7}$ ]] || usage_error "$1 ${2:-}: a number is wanted"; }

OPTIONS=() ALONE='' HUGE=0 OUTPUT=table
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --alone) ALONE=1; shift ;;
    --scenario | --flows | --seconds) [ $# -ge 2 ] || usage_error "$1 wants a value"; OPTIONS+=("$1" "$2"); shift 2 ;;
    --peers | --vector | --rounds) need_number "$1" "${2:-}"; OPTIONS+=("$1" "$2"); shift 2 ;;
    --huge-pages) need_number "$1" "${2:-}"; HUGE=$2; shift 2 ;;
    -o | --output)
      case ${2:-} in table | json) OUTPUT=$2 ;; *) usage_error "$1 ${2:-}: there are table and json" ;; esac
      shift 2
      ;;
    *) usage >&2; usage_error "what is '$1'?" ;;
  esac
done

VPP=$(command -v "${VPP:-vpp}") ||
  missing "there is no VPP: Debian 12 has no package of it. Build it from its own source and set VPP to the program"
VPPCTL=$(dirname "$(readlink -f "$VPP")")/vppctl
[ -x "$VPPCTL" ] || VPPCTL=$(command -v vppctl) || missing "there is no vppctl next to $VPP or on the PATH"
"$PYTHON" -c 'import scapy' 2> /dev/null || missing "scapy is not installed: scripts/install-deps.sh --peers"
OVERLANE=''
[ -n "$ALONE" ] || OVERLANE=$(program overlane-perf) || exit 1
[ "$(nproc)" -ge 2 ] || die "two CPUs are wanted: VPP's worker has one for itself"

FOLDER=$(mktemp -d "${TMPDIR:-/tmp}/overlane-vpp.XXXXXX")
BEFORE=''
# leave: whatever happens; VPP itself is ended by the program that started it.
leave() {
  rm -rf "$FOLDER"
  [ -z "$BEFORE" ] || echo "$BEFORE" > "$PAGES"
}
trap leave EXIT
# The program ends VPP before it ends itself; only then does `leave` have its turn.
stop() { if [ -n "${!:-}" ]; then kill "$!" 2> /dev/null || true; else exit 130; fi; }
trap stop INT TERM

if [ -z "${OVERLANE_PERF_LOCKED:-}" ]; then
  exec 8> /run/overlane-perf.lock || die "cannot lock /run/overlane-perf.lock: be root, or set OVERLANE_PERF_LOCKED"
  flock -w 600 8 || die "somebody else has been measuring for ten minutes (/run/overlane-perf.lock)"
fi
if [ "$HUGE" -gt 0 ]; then
  need_root "--huge-pages"
  BEFORE=$(cat "$PAGES")
  echo $((BEFORE + HUGE)) > "$PAGES"
  [ "$(cat "$PAGES")" -ge $((BEFORE + HUGE)) ] ||
    die "the kernel has only $(cat "$PAGES") of $((BEFORE + HUGE)) huge pages: memory is too scattered, or too little"
fi

"$PYTHON" -B "$PEERS/vpp_memory.py" --vpp "$VPP" --vppctl "$VPPCTL" --overlane "$OVERLANE" --folder "$FOLDER" \
  --output "$OUTPUT" --huge-pages "$HUGE" ${OPTIONS[@]+"${OPTIONS[@]}"} &
MEASURING=$!
STATUS=0
while kill -0 "$MEASURING" 2> /dev/null; do
  STATUS=0
  wait "$MEASURING" || STATUS=$?
done
[ "$STATUS" = 0 ] || exit "$STATUS"
