"""Becomes the program that it is told to run; started by programs.py, never imported.

    python -I -S launch.py STATUS_FD PARENT =LC_CTYPE FILE ARGV0 [ARGV...]

It does what must happen in the child between fork and exec, without the dangers of Python's
preexec_fn in a process with threads. STATUS_FD is a pipe: it closes when the program runs, and
carries the errno if it cannot be run. Costs about 10 ms.
"""

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1
_SIGKILL, _SIGPIPE, _SIGXFSZ = 9, 13, 25  # `import signal` would cost 5 ms


def main(status: str, parent: str, lc_ctype: str, file: str, *argv: str) -> None:
    libc = ctypes.CDLL(None)
    if sys.platform == "linux":
        libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
    if os.getppid() != int(parent):  # it died before it could be bound to us
        os._exit(1)
    for number in (_SIGPIPE, _SIGXFSZ):  # Python ignores both, and exec would hand that down
        libc.signal(number, None)
    # Python sets it where the locale is C (PEP 538); the program gets what it was given.
    os.environ.pop("LC_CTYPE", None)
    if lc_ctype != "=":
        os.environ["LC_CTYPE"] = lc_ctype[1:]
    os.set_inheritable(int(status), False)
    try:
        os.execv(file, argv)
    except OSError as error:
        os.write(int(status), str(error.errno).encode())
        os._exit(127)


main(*sys.argv[1:])
