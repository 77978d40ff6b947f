#!/usr/bin/env bash
# Install what is needed and run every test. See usage below.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib/common.sh
. "$here/lib/common.sh"

usage() {
  cat <<'TEXT'
usage: test.sh [options]
  --quick          everything but what takes long (the default)
  --long           the long variants of the tests too
  --vm             scenarios and root tests on stock Debian kernels, in emulation
  --fuzz SECONDS   fuzz each target for that long
  --only STAGE     this stage only; may be repeated

stages, in their order:
  deps         packages and the Rust toolchain
  fmt          cargo fmt --check
  clippy       cargo clippy, warnings are errors
  shellcheck   the scripts
  unit         cargo test: units, packets, properties, documentation
  instructions what the packet path executes for a packet, against perf/baseline.json
  root         tests that need root: BPF programs, ports, a node (cargo test -- --ignored)
  netns        scenarios on the testbed, dataplane/tests/netns/
  fuzz         only with --fuzz
  vm           only with --vm

The last line is 'N passed, N failed', with ', N skipped' if there are any; each cargo test,
each scenario and each other stage counts as one. Exit status 1 if anything failed.
OVERLANE_VM_RUN: the program that boots a kernel (../shared/tools/vm-run.sh).
TEXT
}

LENGTH=quick VM=no FUZZ=0 ONLY=()
STAGES=(deps fmt clippy shellcheck unit instructions root netns fuzz vm)
PASSED=0 FAILED=0 SKIPPED=0
FAILURES=() SKIPS=()
VM_RUN=${OVERLANE_VM_RUN:-$ROOT/../shared/tools/vm-run.sh}
LOGS=$(mktemp -d /tmp/overlane-test.XXXXXX)
STARTED=$SECONDS

parse_arguments() {
  while [ $# -gt 0 ]; do
    case $1 in
      --quick) LENGTH=quick ;;
      --long) LENGTH=long ;;
      --vm) VM=yes ;;
      --fuzz | --only)
        [ $# -ge 2 ] || usage_error "$1 wants a value"
        if [ "$1" = --fuzz ]; then FUZZ=$2; else ONLY+=("$2"); fi
        shift ;;
      -h | --help) usage; exit 0 ;;
      *) usage >&2; exit 2 ;;
    esac
    shift
  done
  [[ $FUZZ =~ ^[0-9]{1,6}$ ]] || usage_error "--fuzz $FUZZ: a number of seconds is wanted"
  local stage
  for stage in ${ONLY[@]+"${ONLY[@]}"}; do
    [[ " ${STAGES[*]} " == *" $stage "* ]] || usage_error "--only $stage: the stages are ${STAGES[*]}"
  done
}

wanted() {
  [ ${#ONLY[@]} = 0 ] || [[ " ${ONLY[*]} " == *" $1 "* ]]
}

pass() { PASSED=$((PASSED + ${1:-1})); }
fail() { FAILED=$((FAILED + 1)); FAILURES+=("$1"); }
skip() { SKIPPED=$((SKIPPED + 1)); SKIPS+=("$1: $2"); say "    skipped: $2"; }

# run STAGE TITLE COMMAND...: one pass or one failure; the output is shown only on failure.
run() {
  local stage=$1 title=$2 log=$LOGS/$1.log began=$SECONDS
  shift 2
  if "$@" > "$log" 2>&1; then
    pass
    say "    ${GREEN}ok${PLAIN}     $title ($((SECONDS - began)) s)"
  else
    fail "$title"
    tail -n 60 "$log" >&2
    say "    ${RED}FAILED${PLAIN} $title ($((SECONDS - began)) s); all of it: $log"
  fi
}

# run_cargo_tests STAGE TITLE ARGUMENTS...: every test counts. A build that fails is one failure.
run_cargo_tests() {
  local stage=$1 title=$2 log=$LOGS/$1.log began=$SECONDS status=0 passed failed name
  shift 2
  cargo test --no-fail-fast "$@" > "$log" 2>&1 || status=$?
  passed=$(sum_of passed "$log")
  failed=$(sum_of failed "$log")
  pass "$passed"
  while read -r name; do fail "$title: $name"; done < <(sed -n 's/^test \(.*\) \.\.\. FAILED$/\1/p' "$log")
  if [ "$status" != 0 ] && [ "$failed" = 0 ]; then
    fail "$title: cargo test ended with $status"
    failed=1
  fi
  if [ "$failed" = 0 ]; then
    say "    ${GREEN}ok${PLAIN}     $title: $passed tests ($((SECONDS - began)) s)"
  else
    tail -n 80 "$log" >&2
    say "    ${RED}FAILED${PLAIN} $title: $failed of $((passed + failed)) ($((SECONDS - began)) s); all of it: $log"
  fi
}

sum_of() { awk -v word="$1" '/^test result:/ { for (i = 2; i <= NF; i++) if ($i == word ";") n += $(i - 1) } END { print n + 0 }' "$2"; }

stage_deps() { run deps "packages and toolchain" "$here/install-deps.sh" --test; }
stage_fmt() { run fmt "cargo fmt --check" cargo fmt --all -- --check; }
stage_clippy() { run clippy "cargo clippy" cargo clippy --workspace --all-targets --quiet -- -D warnings; }

stage_shellcheck() {
  # SC2016: awk and jq programs stand in single quotes on purpose.
  run shellcheck "shellcheck" shellcheck -x -e SC2016 scripts/*.sh scripts/lib/*.sh .ci/run dataplane/tests/netns/*.sh dataplane/tests/vm/*.sh perf/peers/*.sh
}

stage_unit() {
  run_cargo_tests unit "unit tests" --workspace
  [ "$LENGTH" = quick ] || OVERLANE_TEST_LENGTH=$LENGTH run_cargo_tests sequences "sequences of packets against a model" \
    --release -p overlane-dataplane --test packets connections_model
}

stage_instructions() {
  if ! command -v valgrind > /dev/null; then skip instructions "needs valgrind: scripts/install-deps.sh --test"; return; fi
  run instructions "instructions for a packet" count_instructions
  sed -n 's/^warning: /    warning: /p' "$LOGS/instructions.log" >&2
}

count_instructions() {
  cargo run --release --quiet -p overlane-perf -- instructions --baseline perf/baseline.json
}

# One at a time: they share the machine's queues, and some measure time.
stage_root() {
  if [ "$(id -u)" != 0 ]; then skip root "needs root"; return; fi
  OVERLANE_TEST_LENGTH=$LENGTH run_cargo_tests root "root tests" --workspace --lib --bins --tests -- --ignored --test-threads 1
}

stage_netns() {
  if [ "$(id -u)" != 0 ]; then skip netns "needs root"; return; fi
  if release_build netns; then run_scenarios netns "$here/netns-tests.sh"; fi
}

release_build() {
  local log=$LOGS/$1-build.log
  if cargo build --release --quiet -p overlane-dataplane -p overlane-control -p overlane-perf > "$log" 2>&1; then return 0; fi
  tail -n 60 "$log" >&2
  fail "$1: release build"
  return 1
}

# run_scenarios STAGE RUNNER: a runner of scenarios says 'ok NAME', 'FAILED NAME' or 'skipped NAME'.
run_scenarios() {
  local stage=$1 runner=$2 log=$LOGS/$1.log line status=0
  "$runner" "--$LENGTH" 2>&1 | tee "$log" | sed 's/^/    /' >&2 || status=$?
  pass "$(grep -c '^ok ' "$log" || true)"
  while read -r line; do fail "$stage: $line"; done < <(sed -n 's/^FAILED //p' "$log")
  while read -r line; do SKIPPED=$((SKIPPED + 1)); SKIPS+=("$stage: $line"); done < <(sed -n 's/^skipped //p' "$log")
  if [ "$status" != 0 ] && ! grep -q '^FAILED ' "$log"; then fail "$stage: the runner ended with $status"; fi
}

stage_fuzz() {
  local dir target
  if [ "$FUZZ" = 0 ]; then return; fi
  for dir in dataplane/fuzz control/fuzz; do
    [ -d "$dir/fuzz_targets" ] || continue
    if ! cargo fuzz --version > /dev/null 2>&1 || ! cargo +nightly --version > /dev/null 2>&1; then
      skip fuzz "cargo-fuzz and a nightly toolchain are needed: cargo install cargo-fuzz && rustup toolchain install nightly"
      return
    fi
    for target in "$dir"/fuzz_targets/*.rs; do
      target=$(basename "$target" .rs)
      run "fuzz-$target" "fuzz $target for $FUZZ s" \
        cargo +nightly fuzz run --fuzz-dir "$dir" "$target" -- -max_total_time="$FUZZ" -rss_limit_mb=4096
    done
  done
}

# The scenarios in emulation, then the root tests on the kernels that those have downloaded. The
# programs are built here; the guest has no network and only runs them.
stage_vm() {
  local log=$LOGS/vm-build.log kernel command programs
  if [ "$VM" = no ]; then return; fi
  if [ "$(id -u)" != 0 ]; then skip vm "needs root"; return; fi
  if [ ! -x "$VM_RUN" ]; then skip vm "no $VM_RUN; OVERLANE_VM_RUN names another"; return; fi
  release_build vm || return 0
  run_scenarios vm "$here/vm-tests.sh"
  if ! programs=$(test_programs 2> "$log"); then tail -n 40 "$log" >&2; fail "vm: build"; return; fi
  command="set -e; for program in $(tr '\n' ' ' <<< "$programs"); do echo \"== \$program\"; \$program --ignored --test-threads 1; done"
  for kernel in "${OVERLANE_VM_KERNELS:-/tmp/overlane-kernels}"/linux-image-*/; do
    [ -d "$kernel" ] || continue
    run "vm-$(basename "$kernel")" "root tests on $(basename "$kernel")" "$VM_RUN" -k "$kernel" -t 1500 -- "$command"
  done
}

test_programs() {
  cargo test --workspace --no-run --message-format json |
    jq -r 'select(.reason == "compiler-artifact" and .profile.test and .executable != null) | .executable'
}

summary() {
  local line
  say ""
  if [ ${#SKIPS[@]} -gt 0 ]; then
    say "skipped:"
    for line in "${SKIPS[@]}"; do say "  $line"; done
  fi
  if [ ${#FAILURES[@]} -gt 0 ]; then
    say "${RED}failed:${PLAIN}"
    for line in "${FAILURES[@]}"; do say "  $line"; done
    say "logs: $LOGS"
  else
    rm -rf "$LOGS"
  fi
  say "$((SECONDS - STARTED)) s"
  if [ "$SKIPPED" = 0 ]; then printf '%d passed, %d failed\n' "$PASSED" "$FAILED"
  else printf '%d passed, %d failed, %d skipped\n' "$PASSED" "$FAILED" "$SKIPPED"; fi
  [ "$FAILED" = 0 ]
}

parse_arguments "$@"
cd "$ROOT"
# No toolchain yet is the first stage's message.
find_cargo || true
for stage in "${STAGES[@]}"; do
  wanted "$stage" || continue
  case $stage-$FUZZ-$VM in fuzz-0-* | vm-*-no) continue ;; esac
  say "${BOLD}== $stage${PLAIN}"
  "stage_$stage"
  if [ "$stage" = deps ] && [ "$FAILED" != 0 ]; then break; fi
done
summary
