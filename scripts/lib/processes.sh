# shellcheck shell=bash
# The two programs of each node: start, stop, find out whether they are ready.

# shellcheck source=scripts/lib/background.sh
. "$(dirname "${BASH_SOURCE[0]}")/background.sh"

# running PROGRAM NODE: print the process id if it is still the process that was started.
running() { background_pid "$RUN_DIR/$2/$1"; }

# launch PROGRAM NODE ARGUMENTS...: start it in the node's namespace, in the background.
launch() {
  local what=$1 node=$2 path
  shift 2
  path=$(program "overlane-$what") || return 1
  if running "$what" "$node" >/dev/null; then return 0; fi
  background "$(namespace "$node")" "$RUN_DIR/$node/$what" "$path" --socket "$RUN_DIR/$node/$what.sock" "$@"
}

# cpus_of NODE: its workers' CPUs, spread so that nodes share a CPU as late as possible.
cpus_of() {
  local cpus first worker list=''
  mapfile -t cpus < <(allowed_cpus)
  [ "$WORKERS" -le "${#cpus[@]}" ] || return 0
  first=$((($(node_number "$1") - 1) * WORKERS))
  for ((worker = 0; worker < WORKERS; worker++)); do
    list+=,${cpus[$(((first + worker) % ${#cpus[@]}))]}
  done
  printf '%s' "${list#,}"
}

start_dataplane() {
  local node=$1 cpus arguments
  arguments=(--workers "$WORKERS")
  cpus=$(cpus_of "$node")
  [ -z "$cpus" ] || arguments+=(--cpus "$cpus")
  [ -z "$POLLING" ] || arguments+=(--polling "$POLLING")
  [ -z "${TRANSMIT:-}" ] || arguments+=(--transmit "$TRANSMIT")
  [ "${COALESCE:-yes}" = yes ] || arguments+=(--no-coalesce)
  [ -z "$LOG_LEVEL" ] || arguments+=(--log "$LOG_LEVEL")
  launch dataplane "$node" "${arguments[@]}"
}

start_control() {
  launch control "$1" --config "$RUN_DIR/$1/node.yaml" --manifests "$RUN_DIR/$1/manifests" \
    --dataplane-socket "$RUN_DIR/$1/dataplane.sock"
}

# stop_program PROGRAM NODE [SIGNAL]: end it.
stop_program() { stop_background "$RUN_DIR/$2/$1" "overlane-$1 of node $2" "${3:-TERM}"; }

overlane_cli() {
  local node=$1
  shift
  "$(program overlane)" --socket "$RUN_DIR/$node/dataplane.sock" \
    --control-socket "$RUN_DIR/$node/control.sock" "$@"
}

# node_ready NODE: all local pods' ports work, and all others are known.
node_ready() {
  local nodes
  nodes=$(wc -w <<< "$NODE_NAMES")
  overlane_cli "$1" -o json status 2>/dev/null | jq -e \
    --argjson peers $((nodes - 1)) --argjson local "$PODS" --argjson remote $(((nodes - 1) * PODS)) \
    '.node != null and .peers >= $peers and .local_endpoints >= $local and .remote_endpoints >= $remote' \
    > /dev/null 2>&1 || return 1
  overlane_cli "$1" -o json endpoint list 2>/dev/null | jq -e --argjson local "$PODS" \
    '[.. | objects | select(.state? == "ready")] | length >= $local' > /dev/null 2>&1
}

# wait_ready NODE...: 15 s for all of them; else the ends of the logs, and fail.
wait_ready() {
  local node what
  for node in "$@"; do
    wait_until 15 node_ready "$node" && continue
    warn "node $node is not ready after 15 s"
    for what in dataplane control; do
      running "$what" "$node" > /dev/null || say "overlane-$what of node $node is not running"
      say "--- the end of $RUN_DIR/$node/$what.log"
      tail -n 20 "$RUN_DIR/$node/$what.log" >&2 || true
    done
    return 1
  done
}

start_all() {
  local node
  for node in $NODE_NAMES; do start_dataplane "$node" && start_control "$node" || return 1; done
}

stop_all() {
  local dir node stoppers=()
  for dir in "$RUN_DIR"/*/; do
    [ -d "$dir" ] || continue
    node=$(basename "$dir")
    { stop_program control "$node"; stop_program dataplane "$node"; } &
    stoppers+=("$!")
  done
  # a way out takes the dataplane some time: all of them at once
  [ ${#stoppers[@]} = 0 ] || wait "${stoppers[@]}" || true
}
