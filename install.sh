#!/usr/bin/env bash
# Installs HiveMind Worker from this checkout, shows it at work, tests it. See usage below.
#
# System packages come from apt and only where something is missing; Python's packages go into
# .venv, each checked against the hash in .requirements.lock (what runs) or .requirements-dev.lock
# (what tests need too). Nothing asks, so it runs without a terminal.
set -euo pipefail
exec </dev/null
cd "$(dirname "${BASH_SOURCE[0]}")"
PATH=$PATH:/usr/sbin:/sbin
umask 022

# What must be there: a command or a file, and the packages of which the first that exists brings it.
RUN_NEEDS=(
  dockerd:docker.io 'docker:docker-cli,docker.io' iptables:iptables nft:nftables ip:iproute2
  curl:curl
  gcc:gcc musl-gcc:musl-tools /usr/include/stdio.h:libc6-dev
)
TEST_NEEDS=(
  chromium:chromium /usr/share/fonts/truetype/dejavu:fonts-dejavu-core wg:wireguard-tools
  wireguard-go:wireguard-go shellcheck:shellcheck docker-registry:docker-registry
  strace:strace
)
TASK_IMAGE=justin308/hivemind-worker # the worker's default
READY_WITHIN_S=60                    # the worker takes about three; a loaded machine more

checks=() # the names of those that run, by process id

usage() {
  cat <<'TEXT'
./install.sh                 install; says how to start the worker
./install.sh demo [--once]   a master, a worker and a task on real parts; stays until Ctrl-C, or ends after the task
./install.sh test [OPTION…]  install what the tests need too, run every check and all tests (OPTIONs go to pytest;
                             -n 3: in three streams, each with an engine)
./install.sh lock            write the two lock files anew from pyproject.toml, each package at its newest
TEXT
}

say() {
  echo "install.sh: $1" >&2
}

fail() {
  say "$1"
  exit 1
}

# ------------------------------------------------------------------------------ what it needs

find_python() {
  for python in python3 python3.11 python3.12 python3.13 python3.14; do
    if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then return; fi
  done
  fail "Python 3.11 or newer is missing: install it as python3 or python3.11"
}

venv_needs() {
  if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    "$python" -c 'import sys; print("ensurepip:python%d.%d-venv" % sys.version_info[:2])'
  fi
}

is_there() {
  case $1 in
    ensurepip) "$python" -c 'import ensurepip, venv' 2>/dev/null ;;
    /*) [ -e "$1" ] ;;
    *) command -v "$1" >/dev/null ;;
  esac
}

# The packages to install, one a line; alternatives are joined by commas.
missing() {
  local need
  for need in "$@"; do
    if ! is_there "${need%%:*}"; then echo "${need#*:}"; fi
  done | sort -u
}

first_known_package() {
  local package
  for package in ${1//,/ }; do
    if apt-cache show "$package" >/dev/null 2>&1; then break; fi
  done
  echo "$package"
}

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

install_packages() {
  local wanted names=() name
  wanted=$(missing "$@" "$(venv_needs)")
  [ -n "$wanted" ] || return 0
  name=$(missing "$@" "$(venv_needs)" | sed 's/.*,//' | sort -u | xargs)
  say "installing with apt-get: $name"
  command -v apt-get >/dev/null || fail "there is no apt-get here: install these yourself, then run this again"
  if [ "$(id -u)" != 0 ] && ! sudo -n true 2>/dev/null; then
    fail "that takes root: run 'apt-get install $name' as root, then this again"
  fi
  as_root apt-get -qq -o DPkg::Lock::Timeout=300 update >&2
  for name in $wanted; do names+=("$(first_known_package "$name")"); done
  begin "apt-get install ${names[*]}" "$work/apt.log"
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
    -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 "${names[@]}" >"$work/apt.log" 2>&1
  wanted=$(missing "$@" "$(venv_needs)")
  [ -z "$wanted" ] || fail "apt-get did not bring all that was expected of: ${wanted//$'\n'/ }"
  step=''
}

# $1 is a lock file. An environment that was made from the same files is left as it is; the one for
# the tests has all that the worker needs.
make_environment() {
  local digest
  digest=$("$python" -VV | cat - .requirements.lock .requirements-dev.lock pyproject.toml | sha256sum | cut -d' ' -f1)
  if [ "$(cat .venv/.made-from 2>/dev/null)" = "$digest $1" ] ||
    [ "$(cat .venv/.made-from 2>/dev/null)" = "$digest .requirements-dev.lock" ]; then
    return
  fi
  say "making the virtual environment .venv from $1"
  "$python" -m venv --clear .venv
  .venv/bin/python -m pip install -qq --no-deps --require-hashes -r "$1"
  .venv/bin/python -m pip install -qq --no-deps --no-build-isolation --editable .
  echo "$digest $1" >.venv/.made-from
}

prepare() {
  work=$(mktemp -d /tmp/hivemind-XXXXXX)
  trap on_exit EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
  find_python
}

on_exit() {
  local code=$? log
  set +e # every part is tidied up, whatever fails
  trap '' INT TERM HUP
  if [ "$code" -ne 0 ] && [ "$code" -lt 128 ] && [ -n "${step-}" ]; then # 128 and more: Ctrl-C
    say "failed: $step"
    for log in "${evidence[@]}"; do
      if [ -s "$log" ]; then
        say "the end of $log:"
        tail -n 20 "$log" >&2
      fi
    done
    code=1 # the step's own code would say nothing here
  fi
  stop_demo
  [ ${#checks[@]} -eq 0 ] || kill "${!checks[@]}" 2>/dev/null # they ignore Ctrl-C
  rm -rf -- "$work"
  exit "$code"
}

# What is being done, and the files that tell why it failed.
begin() {
  step=$1
  evidence=("${@:2}")
}

# ---------------------------------------------------------------------------------- the demo

show() {
  begin "$@"
  say "$1"
}

start_engine() {
  show "looking for a Docker engine"
  docker version >/dev/null 2>&1 && return
  [ "$(id -u)" = 0 ] || fail "no Docker engine answers, and only root can start one: start Docker, or run this as root"
  show "starting a private Docker engine" "$work/e/dockerd.log"
  engine=$work/e
  DOCKER_HOST=$(tests/system/engine/start.sh "$engine")
  export DOCKER_HOST
}

build_image() {
  show "building the task image $TASK_IMAGE"
  procs/executor/image/build.sh "$TASK_IMAGE" >/dev/null
}

start_master() {
  show "starting the master" "$work/master.log"
  touch "$work/master.log"
  setsid .venv/bin/hivemind-master serve --tls --listen 127.0.0.1:0 --http 127.0.0.1:0 --trust-level 3 \
    --data "$work/master" >"$work/master.log" 2>&1 &
  master=$!
  await is_master_ready "$master"
  HIVEMIND_MASTER=$(grep -oP '^hivemind-master ready .*http=\K\S+' "$work/master.log")
  HIVEMIND_ADMIN_TOKEN_FILE=$work/master/identity/admin.token
  export HIVEMIND_MASTER HIVEMIND_ADMIN_TOKEN_FILE
}

is_master_ready() {
  grep -q '^hivemind-master ready ' "$work/master.log"
}

# The page's usual port, or a free one where someone has it.
choose_web_port() {
  web_port=$(.venv/bin/python - <<'PYTHON'
import socket

with socket.socket() as probe:
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        probe.bind(("127.0.0.1", 5001))
    except OSError:
        probe.bind(("127.0.0.1", 0))
    print(probe.getsockname()[1])
PYTHON
  )
}

start_worker() {
  show "starting the worker" "$work/supervisord.log"
  if .venv/bin/supervisorctl -c supervisor.conf pid >/dev/null 2>&1; then
    fail "a worker runs from this checkout already: stop it with '.venv/bin/supervisorctl -c supervisor.conf shutdown'"
  fi
  choose_web_port
  token=$(.venv/bin/hivemind token create)
  HIVEMIND_CONFIG='' HIVEMIND_HOME=$work/home MASTER_NODE_URL=$HIVEMIND_MASTER MASTER_JOIN_TOKEN=$token VPN=off \
    NODE_NAME=demo WEB_LISTEN=127.0.0.1:$web_port TASK_IMAGE=$TASK_IMAGE \
    setsid .venv/bin/supervisord -n -c supervisor.conf >"$work/supervisord.log" 2>&1 &
  worker=$!
  evidence+=("$work/home/log/master_link.log" "$work/home/log/executor.log")
  await is_node_ready "$worker"
}

is_node_ready() {
  .venv/bin/hivemind nodes --json 2>/dev/null | grep -qi '"state": "ready"'
}

# Until command $1 succeeds, as long as process $2 lives.
await() {
  local end=$((SECONDS + READY_WITHIN_S))
  until "$1"; do
    kill -0 "$2" 2>/dev/null || fail "it ended at once"
    [ "$SECONDS" -lt "$end" ] || fail "not there after $READY_WITHIN_S s"
    sleep 0.2
  done
}

run_task() {
  show "running a task: count.py, with words.txt as its input" "$work/home/log/executor.log"
  mkdir "$work/task"
  printf '%s\n' bee hive bee honey bee >"$work/task/words.txt"
  cat >"$work/task/count.py" <<'PYTHON'
import collections
import time

counts = collections.Counter(open("words.txt").read().split())
for word, count in counts.most_common():
    print(f"{word}: {count}")
    time.sleep(0.3)  # for you to see the log arrive while the task runs
with open("counts.txt", "w") as file:
    file.writelines(f"{word} {count}\n" for word, count in counts.most_common())
PYTHON
  .venv/bin/hivemind run --input "$work/task/count.py" --input "$work/task/words.txt" \
    --output "$work/output" -- python3 count.py
  show "checking its output" "$work/home/log/executor.log"
  [ "$(cat "$work/output/counts.txt")" = $'bee 3\nhive 1\nhoney 1' ] || fail "counts.txt is not as it must be"
  echo "Its output came back as it must be: counts.txt"
}

show_page() {
  show "asking for the page" "$work/supervisord.log" "$work/home/log/web.log"
  await is_page_there "$worker"
  echo "The page: http://localhost:$web_port/monitor.html"
}

is_page_there() {
  curl -fsS --max-time 5 -o /dev/null "http://127.0.0.1:$web_port/monitor.html" 2>/dev/null
}

stay() {
  echo "More tasks: export HIVEMIND_MASTER=$HIVEMIND_MASTER HIVEMIND_ADMIN_TOKEN_FILE=$HIVEMIND_ADMIN_TOKEN_FILE"
  echo "            .venv/bin/hivemind run -- python3 -c 'print(1)'"
  show "staying until Ctrl-C" "$work/supervisord.log"
  trap 'exit 0' INT TERM HUP
  wait -n "$worker" "$master" || true
  fail "the worker or the master has ended"
}

# SIGTERM, and SIGKILL after 20 s.
end() {
  local end=$((SECONDS + 20))
  kill -TERM "$1" 2>/dev/null || return 0
  while kill -0 "$1" 2>/dev/null && [ "$SECONDS" -lt "$end" ]; do sleep 0.1; done
  kill -KILL "$1" 2>/dev/null || true
  wait "$1" 2>/dev/null || true
}

# An interrupted task's container, networks and their firewall outlive the worker by design; not
# the demo's.
remove_from_docker() {
  local ids ours=label=hivemind.home=$work/home
  mapfile -t ids < <(docker ps --all --quiet --filter "$ours" 2>/dev/null)
  [ ${#ids[@]} -eq 0 ] || docker rm --force --volumes "${ids[@]}" >/dev/null 2>&1 || true
  mapfile -t ids < <(docker network ls --quiet --filter "$ours" 2>/dev/null)
  [ ${#ids[@]} -eq 0 ] || docker network rm "${ids[@]}" >/dev/null 2>&1 || true
  nft delete table inet "$(.venv/bin/python -m shared.egress "$work/home")" 2>/dev/null || true
}

stop_demo() {
  [ -z "${worker-}" ] || end "$worker"
  [ -z "${master-}" ] || end "$master"
  [ -z "${worker-}" ] || remove_from_docker
  [ -z "${engine-}" ] || tests/system/engine/stop.sh "$engine" --purge
}

demo() {
  if [ $# -gt 1 ] || { [ $# -eq 1 ] && [ "$1" != --once ]; }; then usage >&2; exit 2; fi
  prepare
  install_packages "${RUN_NEEDS[@]}"
  make_environment .requirements.lock
  start_engine
  build_image
  start_master
  start_worker
  run_task
  show_page
  if [ "${1-}" != --once ]; then stay; fi
  show "done; stopping all"
}

# ---------------------------------------------------------------------------------- the rest

install_worker() {
  prepare
  install_packages "${RUN_NEEDS[@]}"
  make_environment .requirements.lock
  .venv/bin/hivemind-worker configure || say "run '.venv/bin/hivemind-worker configure' once the driver works"
  echo "Installed. Start the worker: MASTER_NODE_URL=https://… .venv/bin/supervisord -c supervisor.conf"
}

# $1 is started beside the tests, which mostly wait.
start_check() {
  "$@" >"$work/$1.log" 2>&1 &
  checks[$!]=$1
}

end_checks() {
  local pid
  for pid in "${!checks[@]}"; do
    wait "$pid" || broken+=("${checks[$pid]}")
    cat "$work/${checks[$pid]}.log"
  done
  checks=()
}

# Every check runs to its end, so that one look shows all that is wrong; shellcheck is a test.
run_tests() {
  local broken=() code=0 scratch
  prepare
  [ "$(id -u)" = 0 ] || fail "the tests start Docker engines and network namespaces: run them as root"
  if apt-cache show runsc >/dev/null 2>&1; then TEST_NEEDS+=(runsc:runsc); fi # not every distribution has it
  install_packages "${RUN_NEEDS[@]}" "${TEST_NEEDS[@]}"
  make_environment .requirements-dev.lock
  export PATH=$PWD/.venv/bin:$PATH
  start_check ruff check .
  start_check mypy
  start_check lint-imports
  scratch=$(mktemp -d /tmp/hmt-XXXXXX) # short: sockets lie below; ours: nobody's leftovers in it
  python -m pytest -n 0 --dist loadfile --no-loadscope-reorder --basetemp="$scratch/t" "$@" || code=$?
  rm -rf -- "$scratch"
  end_checks
  if [ ${#broken[@]} -gt 0 ]; then
    say "not clean: ${broken[*]}"
    if [ "$code" -eq 0 ]; then code=1; fi
  fi
  exit "$code"
}

lock() {
  prepare
  make_environment .requirements-dev.lock
  write_lock .requirements-dev.lock --extra dev
  write_lock .requirements.lock --constraint .requirements-dev.lock
}

# hatchling and editables install this checkout itself.
write_lock() {
  printf '%s\n' hatchling editables | .venv/bin/uv pip compile --quiet --universal --generate-hashes --upgrade \
    --python-version 3.11 --no-emit-index-url --no-annotate --custom-compile-command "./install.sh lock" \
    --output-file "$@" pyproject.toml -
}

case ${1-} in
  demo) demo "${@:2}" ;;
  test) run_tests "${@:2}" ;;
  lock) lock ;;
  -h | --help) usage ;;
  '') install_worker ;;
  *) usage >&2; exit 2 ;;
esac
