#!/usr/bin/env bash
# From a fresh Debian machine to two nodes whose pods talk to each other, to services and to the
# outside through Overlane, with the proof.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib/common.sh
. "$here/lib/common.sh"
MODE=geneve
# shellcheck source=scripts/lib/addresses.sh
. "$here/lib/addresses.sh"
# shellcheck source=scripts/lib/manifests.sh
. "$here/lib/manifests.sh"

usage() {
  cat <<'TEXT'
usage: quickstart.sh [options of testbed.sh up]
Installs what is needed, builds, brings two nodes up on this machine in network namespaces,
measures, shows a frame of the underlay, a service with two backends and a host outside, and
leaves the testbed up.
TEXT
}

STEPS=13 STEP=0
WORK=$(mktemp -d /tmp/overlane-quickstart.XXXXXX)
# Results for the picture at the end.
RTT4='' RTT6='' COPIED='' RATE='' BACK='' OUTER='' SPREAD='' SEEN='' ASKED='' HOLDER=''
VIP4=10.96.1.1 VIP6=fd98::101
DNS4=10.96.0.10 DNS6=fd98::a NODE_PORT=30080
BALANCER4=10.0.7.1 BALANCER6=fd00:10:0:7::1

step() {
  STEP=$((STEP + 1))
  printf '\n%s[%d/%d] %s%s %s(%d s)%s\n' "$BOLD" "$STEP" "$STEPS" "$1" "$PLAIN" "$DIM" "$SECONDS" "$PLAIN"
}

at() { local name=$1; shift; ip netns exec "$(namespace "$name")" "$@"; }

end() {
  local job
  for job in $(jobs -p); do kill "$job" 2> /dev/null || true; done
  wait 2> /dev/null || true
  rm -rf "$WORK"
}
trap end EXIT
trap 'exit 130' INT TERM

listening() { at "$1" ss -Hltn "sport = :$2" | grep -q .; }

build() {
  find_cargo || die "no cargo: see scripts/install-deps.sh"
  cargo build --release --locked -p overlane-dataplane -p overlane-control ||
    die "the build failed; the message above says where"
}

ping_pods() {
  local address said
  for address in "$(pod_ip4 b 1)" "$(pod_ip6 b 1)"; do
    # the first packet may wait for a neighbour; it is not part of the figure
    at a-pod1 ping -n -q -c 1 -W 2 "$address" > /dev/null || true
    said=$(at a-pod1 ping -n -q -c 20 -i 0.02 -W 2 "$address") || die "no answer from $address: scripts/testbed.sh status"
    tail -n 2 <<< "$said"
    case $address in
      *:*) RTT6=$(awk -F/ '/^rtt/ { print $5 }' <<< "$said") ;;
      *) RTT4=$(awk -F/ '/^rtt/ { print $5 }' <<< "$said") ;;
    esac
  done
}

transfer() {
  local server sent got began took
  head -c 32M /dev/urandom > "$WORK/sent"
  at b-pod1 socat -u TCP6-LISTEN:9000,reuseaddr "CREATE:$WORK/got" &
  server=$!
  wait_until 5 listening b-pod1 9000 || die "the receiver in b-pod1 does not listen"
  began=${EPOCHREALTIME/./}
  at a-pod1 timeout 60 socat -u "OPEN:$WORK/sent" "TCP:$(pod_ip4 b 1):9000" || die "the transfer did not finish"
  wait "$server" || die "the receiver failed"
  took=$(((${EPOCHREALTIME/./} - began) / 1000))
  sent=$(sha256sum < "$WORK/sent") got=$(sha256sum < "$WORK/got")
  [ "$sent" = "$got" ] || die "the 32 MiB did not arrive as they were sent"
  COPIED="32 MiB in $took ms, same SHA-256"
  printf '%s: %s\n' "$COPIED" "${got%% *}"
}

measure() {
  local server
  at b-pod1 iperf3 -s > "$WORK/server" 2>&1 &
  server=$!
  wait_until 5 listening b-pod1 5201 || die "iperf3 in b-pod1 does not listen: $(cat "$WORK/server")"
  at a-pod1 iperf3 -J -t 3 -c "$(pod_ip4 b 1)" > "$WORK/there" || die "iperf3: $(jq -r .error "$WORK/there")"
  at a-pod1 iperf3 -J -t 3 -R -c "$(pod_ip6 b 1)" > "$WORK/back" || die "iperf3: $(jq -r .error "$WORK/back")"
  kill "$server"
  wait "$server" 2> /dev/null || true
  RATE=$(jq -r '.end.sum_received.bits_per_second / 1e6 | floor' "$WORK/there")
  BACK=$(jq -r '.end.sum_received.bits_per_second / 1e6 | floor' "$WORK/back")
  printf 'a-pod1 to b-pod1 over IPv4: %s Mbit/s\nb-pod1 to a-pod1 over IPv6: %s Mbit/s\n' "$RATE" "$BACK"
}

# The bridge in ovl-net is the network between the nodes: what it sees is all there is.
show_frame() {
  local tshark
  at net tshark -n -i br0 -a duration:8 -c 2 -f "udp port 6081 or udp port 4789 or net $(cluster_net4)" \
    -w "$WORK/frame.pcap" > "$WORK/tshark" 2>&1 &
  tshark=$!
  wait_until 8 grep -q Capturing "$WORK/tshark" || true
  sleep 0.3
  at a-pod1 ping -n -q -c 2 -i 0.2 -W 2 "$(pod_ip4 b 1)" > /dev/null
  wait "$tshark" || true
  tshark -n -r "$WORK/frame.pcap" -c 1 -O eth,ip,ipv6,udp,geneve,vxlan,icmp \
    -o ip.check_checksum:TRUE -o udp.check_checksum:TRUE 2> /dev/null |
    grep -vE '^ +(\[|[.01]{4} |Address: |Data)|^[0-9a-f]{4}  |^$' | cut -c 1-100
  # the first address of each field is the outermost header's
  OUTER=$(tshark -n -r "$WORK/frame.pcap" -c 1 -T fields -E occurrence=f -E separator=' ' \
    -e eth.type -e ip.src -e ip.dst -e ipv6.src -e ipv6.dst 2> /dev/null |
    awk '$1 == "0x0800" { print $2, "to", $3 } $1 == "0x86dd" { print $(NF - 1), "to", $NF }')
  [ -n "$OUTER" ] || die "no frame of the pods' traffic was seen on the underlay"
}

# web NAME: scripts/lib/web.py there on port 8080, until the testbed goes; its log is emptied.
web() {
  local log=$RUN_DIR/a/web-$1.log
  : > "$log"
  if listening "$1" 8080; then return; fi
  setsid ip netns exec "$(namespace "$1")" python3 "$here/lib/web.py" "$1" 8080 "$log" \
    < /dev/null > "$WORK/web-$1" 2>&1 &
  disown "$!"
  wait_until 5 listening "$1" 8080 || die "the web server in $1 does not listen: $(cat "$WORK/web-$1")"
}
get() { at "$1" curl -sS -g --noproxy '*' --max-time 3 "$2"; }
answers() { get "$@" > /dev/null 2>&1; }

# A service with a backend on each node: 40 connections, and who answered them.
service() {
  local address i
  web a-pod2
  web b-pod1
  NODE_NAMES='a b'
  service_manifest web $VIP4 $VIP6 80=8080/TCP@$NODE_PORT | everywhere service-web
  slice_manifests web 80=8080/TCP "a=$(pod_ip4 a 2)" "a=$(pod_ip6 a 2)" "b=$(pod_ip4 b 1)" "b=$(pod_ip6 b 1)" |
    everywhere slices-web
  for address in "$VIP4" "[$VIP6]"; do
    wait_until 5 answers a-pod1 "http://$address/" || die "the service $address does not answer: $TESTBED status"
    for ((i = 0; i < 40; i++)); do get a-pod1 "http://$address/" || die "the service $address did not answer"; done > "$WORK/answers"
    printf '40 times curl http://%s/ in a-pod1, answered by: what the backend says, whom it sees\n' "$address"
    sort "$WORK/answers" | uniq -c
    [ "$(cut -d ' ' -f 1 "$WORK/answers" | sort -u | wc -l)" = 2 ] || die "not both backends of the service were chosen"
    [ -n "$SPREAD" ] || SPREAD=$(awk '{ n[$1]++ } END { print n["a-pod2"] " a-pod2, " n["b-pod1"] " b-pod1" }' "$WORK/answers")
  done
}

# The same service from outside: any node's address and the NodePort. Its backends see the node that
# was asked, so that their answers come back through it.
from_outside() {
  local address i
  for address in "$(node_ip4 a)" "$(node_ip4 b)" "[$(node_ip6 a)]" "[$(node_ip6 b)]"; do
    address=http://$address:$NODE_PORT/
    wait_until 5 answers ext "$address" || die "$address does not answer ovl-ext: $TESTBED status"
    printf '    20 times curl %s\n' "$address"
    for ((i = 0; i < 20; i++)); do get ext "$address" || die "$address did not answer"; done > "$WORK/answers"
    sort "$WORK/answers" | uniq -c
  done
}

# And at a load balancer's addresses, that of each family answered for by one live node, which other
# hosts of the link find by ARP and ND.
from_balancer() {
  local address node i
  LOAD_BALANCER="$BALANCER4 $BALANCER6" service_manifest web $VIP4 $VIP6 80=8080/TCP@$NODE_PORT | everywhere service-web
  for address in "$BALANCER4" "[$BALANCER6]"; do
    wait_until 10 answers ext "http://$address/" || die "http://$address/ does not answer ovl-ext: $TESTBED status"
    node=$(overlane_of a -o json status |
      jq -r --arg address "$(tr -d '[]' <<< "$address")" '.control.announcements[] | select(.address == $address) | .node')
    printf '    20 times curl http://%s/, for which node %s answers\n' "$address" "$node"
    for ((i = 0; i < 20; i++)); do get ext "http://$address/" || die "http://$address/ did not answer"; done > "$WORK/answers"
    sort "$WORK/answers" | uniq -c
    HOLDER=${HOLDER:-$node}
  done
}

# A name server in a pod of b, asked by its service's address from a pod of a.
dns() {
  local address how name=web.default.svc.cluster.local
  if ! at b-pod2 ss -Hlnu 'sport = :53' | grep -q .; then
    # Everything of it stays in the pod; it goes with the testbed.
    setsid ip netns exec "$(namespace b-pod2)" dnsmasq --keep-in-foreground --conf-file=/dev/null --no-resolv \
      --no-hosts --pid-file= --user=root --address="/$name/$VIP4" --address="/$name/$VIP6" \
      < /dev/null > "$WORK/dnsmasq" 2>&1 &
    disown "$!"
  fi
  wait_until 5 listening b-pod2 53 || die "dnsmasq in b-pod2 does not listen: $(cat "$WORK/dnsmasq")"
  service_manifest dns $DNS4 $DNS6 53=53/UDP 53=53/TCP | everywhere service-dns
  slice_manifests dns '53=53/UDP 53=53/TCP' "b=$(pod_ip4 b 2)" "b=$(pod_ip6 b 2)" | everywhere slices-dns
  for address in $DNS4 $DNS6; do
    for how in +notcp +tcp; do
      wait_until 5 resolves "$address" "$how" "$name" || die "$address does not answer $how: $TESTBED status"
      printf '    dig %s @%s %s: %s\n' "$how" "$address" "$name" \
        "$(ask "$address" "$how" A "$name"), $(ask "$address" "$how" AAAA "$name")"
    done
  done
  ASKED=$DNS4
}
ask() { at a-pod1 dig "$2" +short +tries=1 +time=1 "@$1" "$4" "$3"; }
resolves() { [ "$(ask "$1" "$2" A "$3")" = "$VIP4" ] && [ "$(ask "$1" "$2" AAAA "$3")" = "$VIP6" ]; }

# A host outside the cluster sees nodes, not pods; in flat mode pods are at home in the node network.
outside() {
  local node address wanted
  web ext
  for node in a b; do
    for address in "$EXT4" "[$EXT6]"; do
      get "$node-pod1" "http://$address:8080/" > /dev/null || die "$node-pod1 does not reach $address: $TESTBED status"
    done
  done
  printf 'the log of the web server in ovl-ext, asked by a-pod1 and b-pod1:\n'
  sed 's/^/    /' "$RUN_DIR/a/web-ext.log"
  for node in a b; do
    if [ "$MODE" = flat ]; then wanted="$(pod_ip4 "$node" 1) $(pod_ip6 "$node" 1)"
    else wanted="$(node_ip4 "$node") $(node_ip6 "$node")"; fi
    for address in $wanted; do
      grep -qF " $address " "$RUN_DIR/a/web-ext.log" || die "the web server outside did not see $address"
    done
    SEEN+="${SEEN:+, }${wanted% *}"
  done
}

node_status() {
  local node
  for node in a b; do
    printf '%snode %s%s\n' "$BOLD" "$node" "$PLAIN"
    overlane_of "$node" status
  done
}

overlane_of() {
  local node=$1
  shift
  "$(bin_dir)/overlane" --socket "$RUN_DIR/$node/dataplane.sock" --control-socket "$RUN_DIR/$node/control.sock" "$@"
}

# received = sent + dropped + to the host + held, exactly.
counters() {
  local node
  printf '%-6s %-8s %12s = %12s + %9s + %9s + %6s   %s\n' node worker received sent dropped 'to host' held difference
  for node in a b; do
    overlane_of "$node" -o json status | jq -r --arg node "$node" '.workers[] |
      [$node, .worker, .received, .sent, ([.dropped[]] | add // 0), .to_host, .held, .residual] | @tsv' |
      while read -r n worker received sent dropped host held residual; do
        printf '%-6s %-8s %12s = %12s + %9s + %9s + %6s   %s\n' \
          "$n" "$worker" "$received" "$sent" "$dropped" "$host" "$held" "$residual"
      done
    overlane_of "$node" -o json status | jq -e '[.workers[].residual] | length > 0 and all(. == 0)' > /dev/null ||
      die "the counters of node $node do not close"
  done
}

# two TEXT TEXT: the left and the right side of the picture.
two() { printf '    %-44s%s\n' "$1" "$2"; }
# between TEXT: what went on between the two sides.
between() { printf '      |  %-41s|\n' "$1"; }

picture() {
  printf '\n'
  two ovl-a-pod1 ovl-b-pod1
  two "$(pod_ip4 a 1)" "$(pod_ip4 b 1)"
  two "$(pod_ip6 a 1)" "$(pod_ip6 b 1)"
  between ""
  between "ping  $RTT4 ms IPv4, $RTT6 ms IPv6"
  between "TCP   $RATE Mbit/s there, $BACK back"
  between "copy  $COPIED"
  between "$VIP4  $SPREAD"
  between "$ASKED  names, by UDP and TCP"
  between ""
  two "ovl-a  overlane-dataplane" "ovl-b  overlane-dataplane"
  two "$(node_ip4 a)" "$(node_ip4 b)"
  between ""
  printf "      '------------- br0 in ovl-net --------------'\n"
  printf '        %s: %s\n' "$MODE" "$OUTER"
  printf '                            |\n'
  printf '        ovl-ext  %s  sees %s\n' "$EXT4" "$SEEN"
  printf '                 and asks %s:%s, and %s, now at %s\n' "$(node_ip4 a)" "$NODE_PORT" "$BALANCER4" "$HOLDER"
  cat <<TEXT

It took $SECONDS s. The testbed is up; three things to try next:

    ${BOLD}$TESTBED exec a-pod1 -- curl http://$VIP4/${PLAIN}
    ${BOLD}$TESTBED exec net -- tshark -i br0 -O geneve,vxlan${PLAIN}
    ${BOLD}$(shown "$(bin_dir)/overlane") --socket $RUN_DIR/a/dataplane.sock drops${PLAIN}

And when you have seen enough: $TESTBED down
TEXT
}

# a path as one would type it from here
shown() { printf '%s' "${1#"$PWD"/}"; }

case ${1:-} in -h | --help) usage; exit 0 ;; esac
cd "$ROOT"
TESTBED=scripts/testbed.sh
need_root "quickstart.sh makes network namespaces, which"

step "packages and toolchain"
"$here/install-deps.sh"
step "build"
build
step "testbed: two nodes, two pods each"
"$here/testbed.sh" up --announce "$@"
MODE=$(sed -n 's/^MODE=//p' "$RUN_DIR/testbed.state")
"$here/testbed.sh" status | sed '/^node a$/,$d'
step "ping between pods on two nodes"
ping_pods
step "a TCP transfer, compared byte by byte"
transfer
step "iperf3"
measure
step "a frame on the underlay, decoded"
show_frame
step "a service with a backend on each node"
service
step "the service from a host outside the cluster"
from_outside
step "the service at a load balancer's addresses"
from_balancer
step "names by a service: a name server in a pod"
dns
step "a host outside the cluster"
outside
step "what the nodes say, and counters that close"
node_status
counters
picture
