#!/usr/bin/env bash
# Builds the task image and prints its tag: build.sh TAG
#
# From python:3.11-slim where the engine (DOCKER_HOST, or the default one) reaches a registry, else
# from the Python packages of this machine's own distribution, which apt must be able to download.
# An image that was built from the same files is left as it is.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

REGISTRY_BASE=python:3.11-slim
REGISTRY_PATIENCE_S=20 # an address that swallows packets would hold the build for minutes
LABEL=hivemind.task-image.inputs

say() {
  echo "task image: $1" >&2
}

fail() {
  say "$1"
  exit 1
}

inputs_digest() {
  cat Dockerfile run_task.sh build.sh | sha256sum | cut -d' ' -f1
}

is_current() {
  [ "$(docker image inspect --format "{{index .Config.Labels \"$LABEL\"}}" "$tag" 2>/dev/null)" = "$digest" ]
}

# Succeeds with the base image in the engine; the engine names the repository as soon as the
# registry has answered, and from then on the download may take its time.
pull_registry_base() {
  docker image inspect "$REGISTRY_BASE" >/dev/null 2>&1 && return
  local pull patience
  docker pull "$REGISTRY_BASE" >"$work/pull" 2>&1 &
  pull=$!
  for ((patience = REGISTRY_PATIENCE_S * 5; patience > 0; patience--)); do
    if grep -qs 'Pulling from' "$work/pull" || ! kill -0 "$pull" 2>/dev/null; then break; fi
    sleep 0.2
  done
  if [ "$patience" -eq 0 ]; then kill "$pull" 2>/dev/null || true; fi
  wait "$pull"
}

has_package() {
  apt-cache show --no-all-versions "$1" >/dev/null 2>&1
}

# 3.11 where the distribution has it, else its default version.
choose_python() {
  if ! command -v apt-get >/dev/null; then
    fail "no registry can be reached, and without apt no base image can be assembled"
  fi
  python=python3.11
  has_package python3.11-minimal && return
  if ! has_package python3-minimal; then
    [ "$(id -u)" = 0 ] || fail "apt knows no packages: run apt-get update as root"
    apt-get update -qq >&2
    has_package python3.11-minimal && return
  fi
  python=$(apt-cache depends python3-minimal | grep -oE 'python3\.[0-9]+' | head -n 1)
  say "this distribution has no Python 3.11; the image gets $python"
}

# The libraries are found by apt, because their names differ between distributions; the programs
# that some of them recommend or share files with are left out.
packages() {
  printf '%s\n' "$python-minimal" busybox-static netbase tzdata ca-certificates
  apt-cache depends --recurse --important --no-breaks --no-conflicts --no-replaces \
    "$python-minimal" "lib$python-stdlib" | grep -E '^z?lib[a-z0-9.+-]+$' | grep -vE '^lib(perl|gdbm-compat)' | sort -u
}

unpack_packages() {
  local folder deb
  # Debian's packages still ship /bin and /lib; the loader's absolute link needs them to be one tree with /usr.
  for folder in bin sbin lib lib64; do
    mkdir -p "$root/usr/$folder"
    ln -s "usr/$folder" "$root/$folder"
  done
  for deb in "$work"/debs/*.deb; do
    dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$root" --keep-directory-symlink --no-same-owner
  done
  rm -rf "$root"/usr/share/{doc,man,lintian,locale}
}

# What the packages' own scripts would do.
finish_root() {
  local applet
  for applet in $("$root/bin/busybox" --list); do
    [ -e "$root/usr/bin/$applet" ] || ln -s busybox "$root/usr/bin/$applet"
  done
  ln -sf "$python" "$root/usr/bin/python3"
  ln -sf "$python" "$root/usr/bin/python"
  mkdir -p "$root/etc/ssl/certs" "$root/usr/lib/ssl" "$root/proc" "$root/sys" "$root/dev"
  cat "$root"/usr/share/ca-certificates/mozilla/*.crt >"$root/etc/ssl/certs/ca-certificates.crt"
  ln -sf /etc/ssl/certs/ca-certificates.crt "$root/usr/lib/ssl/cert.pem"
  printf '%s\n' root:x:0:0::/root:/bin/sh nobody:x:65534:65534::/tmp:/bin/sh >"$root/etc/passwd"
  printf '%s\n' root:x:0: nogroup:x:65534: >"$root/etc/group"
  mkdir -m 1777 "$root/tmp"
}

assemble_base() {
  say "no registry can be reached; assembling a base from this distribution's packages"
  choose_python
  root=$work/root
  mkdir "$work/debs" "$root"
  mapfile -t names < <(packages)
  (cd "$work/debs" && apt-get download -qq -o APT::Sandbox::User=root "${names[@]}" >&2) ||
    fail "apt cannot download the packages of a base image"
  unpack_packages
  finish_root
  base=hivemind-task-base:$digest
  tar -C "$root" --owner=0 --group=0 --numeric-owner -c . | docker import - "$base" >/dev/null
}

build() {
  mkdir "$work/context"
  install -m 0644 Dockerfile "$work/context/Dockerfile"
  install -m 0755 run_task.sh "$work/context/run_task.sh"
  docker build --quiet --build-arg "BASE=$base" --label "$LABEL=$digest" --tag "$tag" "$work/context" \
    >"$work/build" 2>&1 || { cat "$work/build" >&2; fail "docker build failed"; }
}

# The intermediate base's tag goes in any case; the image keeps the layers.
clean_up() {
  rm -rf -- "$work"
  docker image rm "hivemind-task-base:$digest" >/dev/null 2>&1 || true
}

if [ $# -ne 1 ] || [ -z "$1" ]; then
  echo "usage: build.sh TAG" >&2
  exit 2
fi
tag=$1
command -v docker >/dev/null || fail "the docker command is missing: apt-get install docker.io"
docker version >/dev/null 2>&1 || fail "no Docker engine answers at ${DOCKER_HOST:-the default address}"
digest=$(inputs_digest)
if ! is_current; then
  umask 022
  work=$(mktemp -d)
  trap clean_up EXIT
  base=$REGISTRY_BASE
  pull_registry_base || assemble_base
  build
fi
echo "$tag"
