"""Wakes supervisord when the watchdog itself has died, since nobody else is left to.

A shell (0.2 MB) waits for the end of a pipe whose other end the watchdog alone holds; then it
becomes this file, run as a script. So: only the standard library here.
"""

import os
import socket
import sys
import time

SHELL = "/bin/sh"
SCRIPT = 'read -r _; exec "$@"'
CONNECTIONS, BETWEEN_S = 2, 0.02  # supervisord reaps at one wake and starts anew at the next


def leave_waker(socket_path: str, not_within_s: float) -> int:
    """Start the shell; the pipe's end, to be held until death.

    A watchdog that dies within `not_within_s` from now is not woken for: no spinning.
    """
    waits, held = os.pipe2(os.O_CLOEXEC)
    not_before_s = time.monotonic() + not_within_s
    command = [sys.executable, "-I", "-S", __file__, socket_path, str(not_before_s)]
    os.posix_spawn(
        SHELL,
        [SHELL, "-c", SCRIPT, "waker", *command],
        os.environ,
        file_actions=[
            (os.POSIX_SPAWN_DUP2, waits, 0),
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
    )
    os.close(waits)
    return held


def wake(socket_path: str, not_before_s: float) -> None:
    """Connecting is enough: nothing is asked."""
    if time.monotonic() < not_before_s:
        return
    for _ in range(CONNECTIONS):
        time.sleep(BETWEEN_S)
        with socket.socket(socket.AF_UNIX) as door:
            door.connect(socket_path)


if __name__ == "__main__":
    wake(sys.argv[1], float(sys.argv[2]))
