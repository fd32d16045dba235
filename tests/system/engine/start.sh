#!/usr/bin/env bash
# Starts a private Docker engine and prints its DOCKER_HOST; one that runs already is left alone.
#
#   start.sh DIR [--no-live-restore] [OPTION OF DOCKERD…]
#
# Images, containers, sockets and log lie in DIR, which must be short (a socket's path ends at 107
# characters). The engine has a network namespace of its own: two engines in one namespace take
# each other's docker0 away. Its containers therefore reach nothing outside.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin

fail() {
  echo "engine: $1" >&2
  exit 1
}

# Whether process $1 lives and its command line names a path in DIR. A zombie's line is empty, so
# a process that was killed counts as gone before anyone has reaped it; `kill -0` would not.
is_ours() {
  { tr '\0' ' ' <"/proc/$1/cmdline" | grep -qF -- "$dir/"; } 2>/dev/null
}

answers() {
  curl -fsS -o /dev/null --max-time 5 --unix-socket "$socket" http://localhost/_ping 2>/dev/null
}

# A pid file whose process is dead makes dockerd wait 15 s for a containerd that never answers.
drop_dead_pid_file() {
  if [ -s "$1" ] && ! is_ours "$(cat "$1")"; then rm -f -- "$1"; fi
}

make_network_namespace() {
  namespace=hme-$(printf %s "$dir" | sha256sum | cut -c1-10)
  [ -e "/run/netns/$namespace" ] || ip netns add "$namespace"
  ip -n "$namespace" link set lo up
  echo "$namespace" >"$dir/namespace"
}

launch() {
  # nsenter, because `ip netns exec` remounts /sys and hides the cgroup v1 hierarchies.
  setsid nsenter "--net=/run/netns/$namespace" dockerd \
    --data-root "$dir/data" --exec-root "$dir/x" --pidfile "$pid_file" --host "$host" \
    "--live-restore=$live_restore" "${options[@]}" </dev/null >>"$dir/dockerd.log" 2>&1 9>&- &
  launched=$!
}

await_answer() {
  for _ in {1..600}; do
    if answers; then return 0; fi
    if ! is_ours "$launched"; then break; fi
    sleep 0.05
  done
  kill "$launched" 2>/dev/null || true
  tail -n 20 "$dir/dockerd.log" >&2
  fail "the engine did not come up; the end of its log stands above"
}

if [ -z "${1-}" ]; then
  echo "usage: start.sh DIR [--no-live-restore] [OPTION OF DOCKERD…]" >&2
  exit 2
fi
live_restore=true
options=("${@:2}")
if [ "${2-}" = --no-live-restore ]; then
  live_restore=false
  options=("${@:3}")
fi
[ "$(id -u)" = 0 ] || fail "only root can start a Docker engine"
for program in dockerd containerd ip nsenter iptables curl flock; do
  command -v "$program" >/dev/null || fail "$program is missing: apt-get install docker.io iproute2 iptables curl"
done

mkdir -p -- "$1"
dir=$(cd -- "$1" && pwd -P)
socket=$dir/docker.sock
host=unix://$socket
pid_file=$dir/docker.pid
[ ${#dir} -le 60 ] || fail "the path is too long for containerd's sockets: $dir"

exec 9>"$dir/lock"
flock -w 60 9 || fail "another start or stop is at work in $dir"
drop_dead_pid_file "$pid_file"
drop_dead_pid_file "$dir/x/containerd/containerd.pid"
if [ ! -s "$pid_file" ]; then
  make_network_namespace
  launch
  await_answer
elif ! answers; then
  fail "process $(cat "$pid_file") runs but does not answer at $host"
fi
echo "$host"
