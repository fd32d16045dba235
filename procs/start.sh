#!/bin/sh
# Starts a process of the worker: start.sh FOLDER [ARGUMENT…], becoming `python -m procs.FOLDER`.
# The interpreter is the one that runs supervisord: its first word, so that a virtual environment
# needs neither activation nor a fixed place.
python=$(tr '\0' '\n' <"/proc/$PPID/cmdline" | head -n 1)
folder=$1
shift
trap 'sleep 1' EXIT # if it can't be run: supervisord starts this anew at once, without end
exec "$python" -m "procs.$folder" "$@"
