#!/bin/sh
# The task image's entry point: run_task [COMMAND ARGUMENT…]
#
# Shows the inputs of /task in /output as links, so that a script finds them by their relative
# names and still writes where its output is collected (which leaves links out); then becomes the
# command or, without one, the task's own script.
set -eu

fail() {
  echo "run_task: $1" >&2
  exit 2
}

# Folders are made, not linked: a script may write beside the inputs in them. What the output has
# already is kept.
link_inputs() {
  find /task -mindepth 1 -maxdepth 1 -exec cp -Rsn {} /output/ + || fail "the inputs cannot be linked into /output"
}

own_script() {
  for name in main.py task_script.py run.py app.py script.py; do
    if [ -f "/task/$name" ]; then
      echo "/task/$name"
      return
    fi
  done
  set -- /task/*.py
  [ -f "$1" ] || fail "no command was given, and /task holds no Python script"
  [ $# -eq 1 ] || fail "no command was given, and /task holds several scripts, none of them called main.py: $*"
  echo "$1"
}

link_inputs
if [ $# -eq 0 ]; then
  script=$(own_script)
  set -- python3 "$script"
fi
exec "$@"
