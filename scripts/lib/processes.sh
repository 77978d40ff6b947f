# shellcheck shell=bash
# The two programs of each node: start, stop, find out whether they are ready.

# running PROGRAM NODE: print the process id if the one in the pid file is alive and is ours.
running() {
  local file=$RUN_DIR/$2/$1.pid pid
  [ -s "$file" ] || return 1
  pid=$(< "$file")
  [[ $pid =~ ^[0-9]+$ ]] || return 1
  # The socket's path is on both command lines and names the node.
  tr '\0' ' ' < "/proc/$pid/cmdline" 2>/dev/null |
    grep -q -e "overlane-$1 .*--socket $RUN_DIR/$2/$1.sock " || return 1
  printf '%s' "$pid"
}

# launch PROGRAM NODE ARGUMENTS...: start it in the node's namespace, in the background.
launch() {
  local what=$1 node=$2 path
  shift 2
  path=$(program "overlane-$what") || return 1
  if running "$what" "$node" >/dev/null; then return 0; fi
  setsid ip netns exec "$(namespace "$node")" "$path" --socket "$RUN_DIR/$node/$what.sock" "$@" \
    < /dev/null >> "$RUN_DIR/$node/$what.log" 2>&1 8>&- 9>&- &
  printf '%s\n' "$!" > "$RUN_DIR/$node/$what.pid"
  disown "$!"
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

# stop_program PROGRAM NODE [SIGNAL]: end it; by KILL if it does not go in 5 s.
stop_program() {
  local pid
  if pid=$(running "$1" "$2"); then
    kill "-${3:-TERM}" "$pid" 2>/dev/null || true
    if ! wait_until 10 all_gone "$pid"; then
      warn "overlane-$1 of node $2 (process $pid) did not end in 10 s: killed"
      kill -KILL "$pid" 2>/dev/null || true
      wait_until 5 all_gone "$pid" || true
    fi
  fi
  rm -f "$RUN_DIR/$2/$1.pid"
}

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
