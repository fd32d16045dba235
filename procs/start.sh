#!/bin/sh
# Starts a process of the worker: start.sh FOLDER [ARGUMENT…], becoming `python -m procs.FOLDER`.
# The interpreter is the one that runs supervisord: its first word, so that a virtual environment
# needs neither activation nor a fixed place.
python=$(tr '\0' '\n' <"/proc/$PPID/cmdline" | head -n 1)
folder=$1
shift
exec "$python" -m "procs.$folder" "$@"
