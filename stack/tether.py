"""Run a command that dies with the process that started it: `tether.py PARENT SIGNAL COMMAND…`.

On Linux the kernel sends SIGNAL to the command when PARENT is gone, even by kill -9. Elsewhere
there is no such promise and the command outlives an unclean end. Standard library only, because
it runs before every child, without site packages, to start in a few milliseconds.
"""

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1
_EXIT_ORPHANED = 1


def main() -> None:
    """Tie this process to its parent and become the command."""
    parent, number, *command = sys.argv[1:]
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0) != 0:
            sys.stderr.write("tether: the kernel refuses PR_SET_PDEATHSIG; going on without\n")
    if os.getppid() != int(parent):  # it died before the kernel was asked
        sys.exit(_EXIT_ORPHANED)
    os.execvp(command[0], command)  # noqa: S606 - our own command line, no shell


if __name__ == "__main__":
    main()
