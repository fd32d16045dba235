#!/usr/bin/env bash
# Stops the private Docker engine that start.sh started in DIR, with everything that it ran.
#
#   stop.sh DIR [--purge]
#
# --purge removes DIR too. Works as well after the engine was killed: its shims and containers
# outlive it, and so do its mounts and its network namespace.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin

# As in start.sh: a zombie counts as gone.
is_ours() {
  { tr '\0' ' ' <"/proc/$1/cmdline" | grep -qF -- "$dir/"; } 2>/dev/null
}

is_gone_within() {
  for ((tenth = 0; tenth < $2 * 10; tenth++)); do
    if ! is_ours "$1"; then return 0; fi
    sleep 0.1
  done
  return 1
}

end() {
  is_ours "$1" || return 0
  kill -TERM "$1" 2>/dev/null || true
  is_gone_within "$1" 10 && return 0
  kill -KILL "$1" 2>/dev/null || true
  is_gone_within "$1" 5 || echo "engine: process $1 does not end" >&2
}

api() {
  curl -fsS --max-time 20 --unix-socket "$dir/docker.sock" "$@" 2>/dev/null
}

# With live-restore a stopping engine leaves its containers running.
remove_containers() {
  local ids id
  ids=$(api 'http://localhost/containers/json?all=1' | grep -oE '"Id":"[0-9a-f]{64}"' | cut -d'"' -f4) || return 0
  for id in $ids; do
    api -X DELETE "http://localhost/containers/$id?force=1&v=1" >/dev/null || true
  done
}

end_by_pid_file() {
  if [ -s "$1" ]; then end "$(cat "$1")"; fi
}

# A shim's children are its containers' first processes: ending the shim alone leaves them running.
end_shims() {
  local file pid child
  for file in /proc/[0-9]*/cmdline; do
    pid=${file//[^0-9]/}
    if { tr '\0' ' ' <"$file" | grep -qE '^[^ ]*containerd-shim'; } 2>/dev/null && is_ours "$pid"; then
      for child in $(cat "/proc/$pid/task/$pid/children" 2>/dev/null || true); do
        kill -KILL "$child" 2>/dev/null || true
      done
      end "$pid"
    fi
  done
}

# Deepest first: a mount inside another must go before it.
unmount_all() {
  awk -v prefix="$dir/" 'index($5, prefix) == 1 { print $5 }' /proc/self/mountinfo | sort -r |
    while read -r mount; do umount -l -- "$mount" 2>/dev/null || true; done
}

remove_network_namespace() {
  [ -s "$dir/namespace" ] || return 0
  ip netns del "$(cat "$dir/namespace")" 2>/dev/null || true
  rm -f -- "$dir/namespace"
}

if [ $# -lt 1 ] || [ $# -gt 2 ] || [ -z "$1" ] || [ "${2---purge}" != --purge ]; then
  echo "usage: stop.sh DIR [--purge]" >&2
  exit 2
fi
[ -d "$1" ] || exit 0
dir=$(cd -- "$1" && pwd -P)

exec 9>"$dir/lock"
flock -w 60 9 || { echo "engine: another start or stop is at work in $dir" >&2; exit 1; }
remove_containers
end_by_pid_file "$dir/docker.pid"
end_by_pid_file "$dir/x/containerd/containerd.pid"
end_shims
rm -f -- "$dir/docker.pid" "$dir/docker.sock" "$dir/x/containerd/containerd.pid"
unmount_all
remove_network_namespace
if [ "${2-}" = --purge ]; then rm -rf -- "$dir"; fi
