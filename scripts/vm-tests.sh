#!/usr/bin/env bash
# Run the scenarios of dataplane/tests/vm on stock Debian kernels in emulation. See usage below.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib/common.sh
. "$here/lib/common.sh"

usage() {
  cat <<'TEXT'
usage: vm-tests.sh [--quick|--long] [--verbose] [NAME...]    names or parts of names; all without

One line each: 'ok NAME (N checks, N s)', 'FAILED NAME: why' or 'skipped NAME: why'; the last
line is 'N passed, N failed, N skipped'. Exit status 1 if anything failed.
The programs are taken from target/release, or from OVERLANE_BIN.

OVERLANE_VM_RUN: the program that boots a kernel (../shared/tools/vm-run.sh).
OVERLANE_VM_KERNELS: folder for the kernels, which are downloaded once (/tmp/overlane-kernels).
TEXT
}

# Name, kernel series, Debian suite that has it, seconds that it may take, the scenario, and
# options for the program that boots the kernel.
TESTS=(
  "geneve-device@6.1     6.1   bookworm          900  geneve-device.sh              -c 2 -m 1536"
  "pktgen@6.1            6.1   bookworm          900  pktgen.sh                     -c 2 -m 1536"
  "peers@6.1             6.1   bookworm          900  peers.sh                      -c 2 -m 1536"
  "virtio-copy@6.12      6.12  bookworm-backports  900  virtio.sh copy                -c 2 -m 2048 -q 2"
  "virtio-zero-copy@6.18 6.18  trixie-backports    900  virtio.sh zero-copy           -c 2 -m 2048 -q 2"
)

LENGTH=quick VERBOSE=no NAMES=()
PASSED=0 FAILED=0 SKIPPED=0
VM_RUN=${OVERLANE_VM_RUN:-$ROOT/../shared/tools/vm-run.sh}
KERNELS=${OVERLANE_VM_KERNELS:-/tmp/overlane-kernels}

parse_arguments() {
  local argument
  for argument in "$@"; do
    case $argument in
      --quick) LENGTH=quick ;;
      --long) LENGTH=long ;;
      --verbose) VERBOSE=yes ;;
      -h | --help) usage; exit 0 ;;
      -*) usage >&2; exit 2 ;;
      *) NAMES+=("$argument") ;;
    esac
  done
}

chosen() {
  local name
  [ ${#NAMES[@]} != 0 ] || return 0
  for name in "${NAMES[@]}"; do [[ $1 != *"$name"* ]] || return 0; done
  return 1
}

pass() { PASSED=$((PASSED + 1)); printf 'ok %s (%s)\n' "$1" "$2"; }
fail() { FAILED=$((FAILED + 1)); printf 'FAILED %s: %s\n' "$1" "$2"; }
skip() { SKIPPED=$((SKIPPED + 1)); printf 'skipped %s: %s\n' "$1" "$2"; }

# The mirror that the machine's own apt uses for the release.
mirror() {
  # shellcheck disable=SC2016
  apt-get indextargets --format '$(CREATED_BY) $(REPO_URI) $(SUITE) $(CODENAME)' 2> /dev/null |
    awk '$1 == "Packages" && ($3 $4) !~ /(security|updates|backports)/ && $2 ~ /debian\/?$/ { print $2; exit }'
}

# private_apt SUITE: an apt configuration with that suite alone and lists of its own; the
# machine's is neither used nor changed. Prints the file's name.
private_apt() {
  local dir=$KERNELS/apt-$1 base keyring=/usr/share/keyrings/debian-archive-keyring.gpg options=arch=amd64
  base=$(mirror)
  [ -n "$base" ] || return 1
  [ ! -r "$keyring" ] || options+=" signed-by=$keyring"
  mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial"
  printf 'deb [%s] %s %s main\n' "$options" "$base" "$1" > "$dir/sources.list"
  cat > "$dir/apt.conf" <<CONF
Dir::Etc::sourcelist "$dir/sources.list";
Dir::Etc::sourceparts "-";
Dir::State::lists "$dir/lists";
Dir::Cache "$dir/cache";
Acquire::Languages "none";
APT::Sandbox::User "root";
CONF
  printf '%s' "$dir/apt.conf"
}

# newest SERIES: of package names on standard input the newest plain kernel of that series.
newest() {
  grep -E "^linux-image-${1//./\\.}\.[0-9][^ ]*-amd64\$" | grep -Ev -- '-(rt|cloud)-|unsigned|dbg' | sort -V | tail -n 1
}

# kernel SERIES SUITE: print the folder with the kernel, from the cache or the mirror; or say why not.
kernel() {
  local found conf dir
  found=$(find "$KERNELS" -mindepth 2 -maxdepth 2 -name .complete -printf '%h\n' 2> /dev/null |
    xargs -r -n 1 basename | newest "$1") || true
  if [ -n "$found" ]; then printf '%s' "$KERNELS/$found"; return; fi
  conf=$(private_apt "$2") || { echo "no Debian mirror is configured, so there is no kernel $1"; return 1; }
  APT_CONFIG=$conf apt-get update -qq > /dev/null 2>&1 || { echo "the lists of $2 cannot be downloaded, so there is no kernel $1"; return 1; }
  found=$(APT_CONFIG=$conf apt-cache search --names-only '^linux-image-' | awk '{ print $1 }' | newest "$1") || true
  [ -n "$found" ] || { echo "$2 has no kernel $1"; return 1; }
  dir=$KERNELS/$found
  rm -rf "$dir"
  mkdir -p "$dir"
  if ! (cd "$dir" && APT_CONFIG=$conf apt-get download -qq "$found" > /dev/null 2>&1 && dpkg -x ./*.deb .); then
    rm -rf "$dir"
    echo "$found cannot be downloaded"
    return 1
  fi
  rm -f "$dir"/*.deb
  : > "$dir/.complete"
  printf '%s' "$dir"
}

# reasons LOG STATUS SECONDS: why a scenario failed, on one line.
reasons() {
  local bad
  bad=$(sed -n 's/^  BAD  //p' "$1" | paste -sd ';' | sed 's/;/; /g')
  if [ -n "$bad" ]; then printf '%s' "$bad"
  elif [ "$2" = 124 ]; then printf 'not done after %s s' "$3"
  else printf 'ended with %s: %s' "$2" "$(grep -v '^  ok ' "$1" | tail -n 1)"; fi
}

# one NAME SERIES SUITE SECONDS SCENARIO [ARGUMENT] -OPTIONS...
one() {
  local name=$1 series=$2 suite=$3 limit=$4 scenario=$5 dir status=0 began=$SECONDS log=$WORK/$1.log
  shift 5
  while [ $# -gt 0 ] && [[ $1 != -* ]]; do scenario+=" $1"; shift; done
  if [ ! -x "$VM_RUN" ]; then skip "$name" "there is no $VM_RUN; OVERLANE_VM_RUN names another"; return; fi
  if ! dir=$(kernel "$series" "$suite"); then skip "$name" "$dir"; return; fi
  VMRUN_CACHE=$KERNELS "$VM_RUN" -k "$dir" -t "$limit" "$@" -- \
    "OVERLANE_BIN=$WORK/bin OVERLANE_TEST_LENGTH=$LENGTH exec bash $ROOT/dataplane/tests/vm/$scenario" > "$log" 2>&1 || status=$?
  case $status in
    0) pass "$name" "$(grep -c '^  ok ' "$log" || true) checks, $((SECONDS - began)) s" ;;
    77) skip "$name" "$(sed -n 's/^# skipped: //p' "$log")" ;;
    *)
      [ "$VERBOSE" = yes ] || grep -v '^  ok ' "$log" || true
      fail "$name" "$(reasons "$log" "$status" "$limit")" ;;
  esac
  if [ "$VERBOSE" = yes ]; then cat "$log"; fi
}

parse_arguments "$@"
need_root "vm-tests.sh"
WORK=$(mktemp -d /tmp/overlane-vm.XXXXXX)
trap 'rm -rf "$WORK"' EXIT
trap 'exit 130' INT TERM
mkdir -p "$KERNELS" "$WORK/bin"
# A copy: a build that goes on meanwhile would change the programs under the guest.
for program in overlane-dataplane overlane-control overlane; do
  path=$(program "$program") || exit 1
  cp "$path" "$WORK/bin/"
done
for test in "${TESTS[@]}"; do
  read -ra words <<< "$test"
  ! chosen "${words[0]}" || one "${words[@]}"
done
[ $((PASSED + FAILED + SKIPPED)) != 0 ] || die "no test is called '${NAMES[*]}'"
printf '%d passed, %d failed, %d skipped\n' "$PASSED" "$FAILED" "$SKIPPED"
[ "$FAILED" = 0 ]
