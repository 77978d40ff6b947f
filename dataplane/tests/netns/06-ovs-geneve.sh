#!/usr/bin/env bash
# The other node is Open vSwitch's userspace datapath with Geneve, without and with an option.
# shellcheck disable=SC2153
# shellcheck source=dataplane/tests/netns/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=dataplane/tests/netns/foreign.sh
. "$HERE/foreign.sh"

for tool in ovsdb-server ovs-vswitchd ovs-vsctl ovs-ofctl ovsdb-tool; do
  command -v "$tool" > /dev/null || PATH=$PATH:/usr/sbin
  command -v "$tool" > /dev/null || skip "$tool is not installed"
done

SCHEMA=/usr/share/openvswitch/vswitch.ovsschema
OPTIONAL_TLV='{class=0x0102,type=0x42,len=4}->tun_metadata0'
CRITICAL_TLV='{class=0x0102,type=0xc2,len=4}->tun_metadata0'

vsctl() { ovs-vsctl --db="unix:$OVS_RUNDIR/db.sock" --timeout=10 "$@"; }
ofctl() { ovs-ofctl "$@"; }

# A switch of our own: no system database, no kernel datapath, sockets in the scenario's folder.
start_ovs() {
  export OVS_RUNDIR=$WORK/ovs OVS_LOGDIR=$WORK/ovs OVS_DBDIR=$WORK/ovs OVS_SYSCONFDIR=$WORK/ovs
  rm -rf "$OVS_RUNDIR"
  mkdir -p "$OVS_RUNDIR"
  ovsdb-tool create "$OVS_RUNDIR/conf.db" "$SCHEMA"
  start k ovsdb-server "$OVS_RUNDIR/conf.db" --remote="punix:$OVS_RUNDIR/db.sock" \
    --unixctl="$OVS_RUNDIR/ovsdb.ctl" --pidfile="$OVS_RUNDIR/ovsdb.pid"
  wait_until 5 test -S "$OVS_RUNDIR/db.sock" || die "ovsdb-server: $(cat "$STARTED_LOG")"
  vsctl --no-wait init
  start k ovs-vswitchd "unix:$OVS_RUNDIR/db.sock" --disable-system \
    --unixctl="$OVS_RUNDIR/vswitchd.ctl" --pidfile="$OVS_RUNDIR/vswitchd.pid"
  VSWITCHD_LOG=$STARTED_LOG
}

# One bridge holds the underlay's interface and address, the other the pod and the tunnel.
build_bridges() {
  local family
  vsctl add-br br-phy -- set bridge br-phy datapath_type=netdev fail_mode=standalone \
    "other_config:hwaddr=$(cat_mac k eth0)" || die "vswitchd: $(tail -n 5 "$VSWITCHD_LOG")"
  vsctl add-port br-phy eth0
  link_in k set br-phy mtu "$MTU" up
  address_in k "$(node_ip4 k)/16" br-phy
  address_in k "$(node_ip6 k)/48" br-phy
  vsctl add-br br-int -- set bridge br-int datapath_type=netdev fail_mode=secure
  vsctl add-port br-int pod0 -- set interface pod0 type=internal ofport_request=1
  vsctl add-port br-int gnv0 -- set interface gnv0 type=geneve ofport_request=2 \
    "options:remote_ip=$("node_ip$UNDERLAY" a)" options:key=1 options:csum=true
  link_in k set pod0 mtu 1400 up
  address_in k "$FOREIGN_POD4/32" pod0
  address_in k "$FOREIGN_POD6/128" pod0
  ip -n ovt-k neigh add 169.254.7.1 lladdr "$(gateway_mac a)" dev pod0 nud permanent
  ip -n ovt-k neigh add fe80::7:1 lladdr "$(gateway_mac a)" dev pod0 nud permanent
  route_in k 10.244.1.0/24 via 169.254.7.1 dev pod0 onlink src "$FOREIGN_POD4"
  route6_in k fd12:3456:0:1::/64 via fe80::7:1 dev pod0 src "$FOREIGN_POD6"
  # The switch does not resolve next hops by itself before the first packet: warm it up.
  for family in 4 6; do one_ping k "$("node_ip$family" a)" > /dev/null || die "k cannot reach a"; done
}

cat_mac() { at "$1" cat "/sys/class/net/$2/address"; }

plain_flows() {
  ofctl del-flows br-int
  ofctl add-flow br-int 'in_port=1,actions=output:2'
  ofctl add-flow br-int 'in_port=2,actions=output:1'
}

# option_flows TLV: what the pod sends carries this option.
option_flows() {
  ofctl del-flows br-int
  # Fails while there is none, which is just as well.
  ofctl del-tlv-map br-int 2> /dev/null || true
  ofctl add-tlv-map br-int "$1"
  ofctl add-flow br-int 'in_port=1,actions=set_field:0x12345678->tun_metadata0,output:2'
  ofctl add-flow br-int 'in_port=2,actions=output:1'
}

for underlay in 4 6; do
  bed --mode geneve --underlay "$underlay" --nodes 1
  foreign_node
  start_ovs
  build_bridges
  foreign_manifests "$(cat_mac k pod0)"
  serve k
  serve a-pod1
  plain_flows
  talk "Open vSwitch over IPv$underlay"
  option_flows "$OPTIONAL_TLV"
  talk "with an option, over IPv$underlay"
  option_flows "$CRITICAL_TLV"
  before=$(drops_of a geneve_unknown_critical_option)
  check "a critical option nobody knows is refused" no_ping k "$(pod_ip4 a 1)" -I "$FOREIGN_POD4"
  check "and named" at_least drops "$(drops_of a geneve_unknown_critical_option)" $((before + 1))
  check "counters of a close" closes a
  stop_started
done
finish
