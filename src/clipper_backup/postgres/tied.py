"""The first moments of a program of PostgreSQL: take on its account, tie its life to ours, become it.

    python -I -S tied.py PARENT SIGNAL UID GID PROGRAM [ARGUMENT ...]

Run by path as a process of its own, so it may import nothing but the standard library. The kernel then sends SIGNAL
to PROGRAM when the thread that started this process ends, however it ends, SIGKILL included (prctl(2),
PR_SET_PDEATHSIG), 0 for none. The order matters: changing the user clears that request.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1
PARENT_GONE, CANNOT_RUN = 125, 126


def launcher(death_signal: signal.Signals | None, uid: int, gid: int) -> list[str]:
    """What goes before a program and its arguments; the process id stays the program's own. None: it may outlive us.

    The thread that starts it must live as long as the program may.
    """
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(int(death_signal or 0)), str(uid), str(gid)]


def main(arguments: Sequence[str]) -> int:
    """Become PROGRAM; the exit code, only where that fails."""
    parent, signal_number, uid, gid = map(int, arguments[:4])
    program = list(arguments[4:])
    libc = ctypes.CDLL(None, use_errno=True)  # before the change of user, who may not be able to read the library's folder
    try:
        if os.geteuid() != uid:  # pragma: no cover - only in a process that becomes a server, where nothing measures
            os.setgroups([])
            os.setgid(gid)
            os.setuid(uid)
        if libc.prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0) != 0:
            errno = ctypes.get_errno()
            raise OSError(errno, os.strerror(errno))  # noqa: TRY301 - one place says why the program did not start
        if os.getppid() != parent:
            return PARENT_GONE  # it ended before the request stood, so no signal will come
        os.execv(program[0], program)  # noqa: S606 - a shell would be one program too many
    except OSError as error:
        sys.stderr.write(f"cannot run {program[0]} as user {uid}: {error.strerror}\n")
    return CANNOT_RUN


if __name__ == "__main__":  # pragma: no cover - as above
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # by Python, and so by whatever it becomes
        signal.signal(ignored, signal.SIG_DFL)
    sys.exit(main(sys.argv[1:]))
