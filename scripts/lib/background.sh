# shellcheck shell=bash
# Programs in the background, in a namespace each. FILE is a path without ending: FILE.pid says which process
# it is, what it prints is added to FILE.log.

# start_time PID: when the process started, in ticks; tells it from a later one of the same number.
start_time() { sed 's/.*) //' "/proc/$1/stat" 2> /dev/null | cut -d' ' -f20; }

# background NAMESPACE FILE COMMAND...: start it. The locks of who starts it (8, 9) are not its.
background() {
  local namespace=$1 file=$2
  shift 2
  setsid ip netns exec "$namespace" "$@" < /dev/null >> "$file.log" 2>&1 8>&- 9>&- &
  printf '%s %s\n' "$!" "$(start_time "$!")" > "$file.pid"
  disown "$!"
}

# background_pid FILE: print its process id, if it is still the process that was started.
background_pid() {
  local pid start
  [ -s "$1.pid" ] || return 1
  read -r pid start < "$1.pid" || return 1
  [[ $pid =~ ^[0-9]+$ && $start =~ ^[0-9]+$ ]] || return 1
  [ "$(start_time "$pid")" = "$start" ] || return 1
  printf '%s' "$pid"
}

background_ended() { ! background_pid "$1" > /dev/null; }

# stop_background FILE WHAT [SIGNAL]: end it; by KILL if it does not go in 10 s. WHAT is its name for people.
stop_background() {
  local pid
  if pid=$(background_pid "$1"); then
    kill "-${3:-TERM}" "$pid" 2> /dev/null || true
    if ! wait_until 10 background_ended "$1"; then
      warn "$2 (process $pid) did not end in 10 s: killed"
      kill -KILL "$pid" 2> /dev/null || true
      wait_until 5 background_ended "$1" || true
    fi
  fi
  rm -f "$1.pid"
}
