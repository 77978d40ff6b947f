#!/usr/bin/env bash
# Open vSwitch with DPDK: its userspace datapath on net_af_xdp, translating by its own connection tracker. A switch of
# its own, with database and sockets in the bed's folder; the system's service is not touched.
# shellcheck source=perf/peers/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

VSWITCHD=/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk
SCHEMA=/usr/share/openvswitch/vswitch.ovsschema
export OVS_RUNDIR=$RUN OVS_LOGDIR=$RUN OVS_DBDIR=$RUN OVS_SYSCONFDIR=$RUN

peer_available() {
  local tool
  for tool in "$VSWITCHD" ovsdb-server ovsdb-tool ovs-vsctl ovs-ofctl ovs-appctl; do
    command -v "$tool" > /dev/null || { say "$(basename "$tool") is not installed: scripts/install-deps.sh --peers"; return 1; }
  done
  compgen -G '/usr/lib/*/dpdk/pmds-*/librte_net_af_xdp.so' > /dev/null ||
    { say "DPDK's net_af_xdp is not installed: scripts/install-deps.sh --peers"; return 1; }
}
peer_workers() { echo 'vswitchd pmd-.*'; }

vsctl() { ovs-vsctl --db="unix:$RUN/db.sock" --timeout=20 "$@"; }
appctl() { ovs-appctl --target="$RUN/vswitchd.ctl" --timeout=20 "$@"; }

# One lcore for the switch's own threads, one for the worker. No huge pages: then memory is of the old kind, which has to
# be said, or the switch asks for another one that needs them.
start_switch() {
  ovsdb-tool create "$RUN/conf.db" "$SCHEMA"
  start ovsdb ovsdb-server "$RUN/conf.db" --remote="punix:$RUN/db.sock" --unixctl="$RUN/ovsdb.ctl"
  wait_until 5 test -S "$RUN/db.sock" || die "ovsdb-server does not start: $(tail -n 3 "$RUN/ovsdb.log")"
  vsctl --no-wait -- init -- set Open_vSwitch . other_config:dpdk-init=true \
    other_config:dpdk-extra="--no-huge --legacy-mem -m 512 --no-pci --no-telemetry --no-shconf --file-prefix overlane-perf" \
    other_config:dpdk-lcore-mask="$(mask "$OTHER_CPU")" other_config:pmd-cpu-mask="$(mask "$WORKER_CPU")"
  start vswitchd env LIBXDP_SKIP_DISPATCHER=1 "$VSWITCHD" "unix:$RUN/db.sock" --disable-system \
    --unixctl="$RUN/vswitchd.ctl"
  wait_until 10 test -S "$RUN/vswitchd.ctl" || die "ovs-vswitchd does not start: $(tail -n 3 "$RUN/vswitchd.log")"
}
mask() { printf '0x%x' $((1 << $1)); }

# add_port BRIDGE NAME DEVICE NUMBER: the device by net_af_xdp.
add_port() {
  vsctl add-port "$1" "$2" -- set interface "$2" type=dpdk ofport_request="$4" \
    "options:dpdk-devargs=net_af_xdp$4,iface=$3" ||
    die "Open vSwitch does not take $3: $(grep -E 'WARN|ERR' "$RUN/vswitchd.log" | tail -n 3)"
}

# The bridge of the underlay has the node's address; what the tunnel sends finds its way by it.
build_tunnel() { # build_tunnel geneve|vxlan
  local address
  vsctl add-br br-phy -- set bridge br-phy datapath_type=netdev fail_mode=standalone "other_config:hwaddr=$NODE_MAC"
  add_port br-phy dp-up up0 7
  ip -n "$NODE_NS" address flush dev up0
  ip -n "$NODE_NS" link set br-phy up
  node_addresses br-phy
  vsctl add-port br-int tunnel -- set interface tunnel type="$1" ofport_request=2 \
    "options:remote_ip=$REMOTE_IP" "options:local_ip=$NODE_IP" "options:key=$VNI"
  for address in "$REMOTE_IP" "$ROUTER_IP"; do appctl tnl/neigh/set br-phy "$address" "$WIRE_MAC" > /dev/null; done
}

# Established packets take one look at the tracker, which translates them, and leave.
service_flows() {
  local number out="set_field:$PORT_MAC->eth_src,set_field:$REMOTE_GATEWAY_MAC->eth_dst,dec_ttl,output:2"
  for ((number = 0; number < SERVICES; number++)); do
    printf 'table=1,ct_state=+new+trk,udp,nw_dst=%s,tp_dst=%s,actions=group:%s\n' "$(service_ip "$number")" "$SERVICE_PORT" $((number + 1))
  done
  cat << FLOWS
table=0,in_port=1,ip,nw_src=$POD_IP,actions=ct(zone=1,nat,table=1)
table=1,ct_state=+est+trk,ip,actions=$out
table=2,ip,actions=$out
table=0,in_port=2,ip,actions=ct(zone=1,nat,table=3)
table=3,ct_state=+est+trk,ip,actions=set_field:$PORT_MAC->eth_src,set_field:$POD_MAC->eth_dst,dec_ttl,output:1
FLOWS
}
service_groups() {
  local number backend
  for ((number = 0; number < SERVICES; number++)); do
    printf 'group_id=%s,type=select' $((number + 1))
    while read -r backend; do
      printf ',bucket=weight:1,actions=ct(commit,zone=1,nat(dst=%s:%s),table=2)' "$backend" "$BACKEND_PORT"
    done < <(backends_of "$number")
    printf '\n'
  done
}

snat_flows() {
  local out="set_field:$NODE_MAC->eth_src,set_field:$WIRE_MAC->eth_dst,dec_ttl,output:2"
  cat << FLOWS
table=0,in_port=1,ip,nw_src=$POD_IP,actions=ct(zone=1,nat,table=1)
table=1,ct_state=+new+trk,ip,actions=ct(commit,zone=1,nat(src=$NODE_IP:10240-29999),table=2)
table=1,ct_state=+est+trk,ip,actions=$out
table=2,ip,actions=$out
table=0,in_port=2,ip,nw_dst=$NODE_IP,actions=ct(zone=1,nat,table=3)
table=3,ct_state=+est+trk,ip,actions=set_field:$PORT_MAC->eth_src,set_field:$POD_MAC->eth_dst,dec_ttl,output:1
FLOWS
}

has_flows() { ovs-ofctl -O OpenFlow15 dump-flows br-int > /dev/null 2>&1; }

peer_up() {
  local file=$RUN/flows
  start_switch
  vsctl add-br br-int -- set bridge br-int datapath_type=netdev fail_mode=secure protocols=OpenFlow15
  add_port br-int dp-pod podport 1
  wait_until 5 has_flows || die "the bridge does not answer"
  if [ "$1" = snat ]; then
    add_port br-int dp-up up0 2
    snat_flows > "$file"
  else
    build_tunnel "$(tunnel_of "$1")"
    service_groups > "$RUN/groups"
    ovs-ofctl -O OpenFlow15 add-groups br-int "$RUN/groups"
    service_flows > "$file"
  fi
  ovs-ofctl -O OpenFlow15 add-flows br-int "$file"
  appctl dpctl/ct-set-maxconns $(($2 * 2 > 3000000 ? $2 * 2 : 3000000)) > /dev/null
}

peer "$@"
