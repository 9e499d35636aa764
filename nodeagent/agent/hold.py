"""The holder, which the agent becomes by execve(2) once it is ready, to save memory.

It holds the lock and waits for SIGTERM or SIGINT. Then it removes the ready flag and becomes the
agent again, to terminate (termination.py). The process ID and the lock's descriptor stay the same.
To be small it imports nothing of the package, and runs as a file, with neither site nor the working
directory on its path.

Both signals are blocked when it starts: one that arrives during the execve is pending until
sigwait(2) takes it. The kernel keeps a blocked signal even for PID 1 of a container, whose signals
it drops if there is no handler. The holder does not wake up while it waits.
"""

from __future__ import annotations

import os
import signal
import sys

EXIT_USAGE = 64
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def command(lock_fd: int, ready: str, log_format: str, then: list[str]) -> list[str]:
    """The holder's argument list, interpreter first.

    -I -S: without the environment and site-packages.
    """
    return [sys.executable, "-I", "-S", __file__, str(lock_fd), ready, log_format, *then]


def become(lock_fd: int, ready: str, log_format: str, then: list[str]) -> None:
    """Replace this process with the holder. Both signals must be blocked. OSError if it fails.

    `then` is the command that the holder becomes in the end; if empty, it exits.
    """
    os.set_inheritable(lock_fd, True)
    # raises OSError if the file is missing: after the execve only the interpreter would notice
    os.stat(__file__)
    argv = command(lock_fd, ready, log_format, then)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(argv[0], argv)  # noqa: S606  no shell is wanted


def until_stopped(ready: str, log_format: str, then: list[str]) -> int:
    """Wait for one of the signals, remove the flag, and return the exit status.

    With `then` it does not return but becomes that command, with the signals blocked and the
    argument `--since`, the time of the signal (CLOCK_MONOTONIC, seconds).
    """
    # A container's PID 1 inherits orphans (an exec probe's children): the kernel reaps them for a
    # process that ignores SIGCHLD, but not those that are dead already.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    reap()
    stop = signal.sigwait(STOP_SIGNALS)
    status = 0
    try:
        _remove(ready)
    except FileNotFoundError:
        pass
    except OSError as error:
        _say(log_format, "ERROR", f"cannot remove {ready}: {error.strerror}")
        status = 1
    if not status:
        _say(log_format, "INFO", f"{signal.Signals(stop).name}: the ready flag is removed")
    return _become_the_agent(then, log_format) if then else status


def _remove(path: str) -> None:
    """Unlink without following a link in the path, as nodeagent/hostpath.py does. OSError."""
    *above, name = path.split("/")
    at = os.open("/" if path.startswith("/") else ".", os.O_PATH | os.O_DIRECTORY)
    for part in filter(None, above):
        flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
        below = os.open(part, flags, dir_fd=at)
        os.close(at)
        at = below
    os.unlink(name, dir_fd=at)
    os.close(at)


def _become_the_agent(then: list[str], log_format: str) -> int:
    import time  # noqa: PLC0415  not before, to save memory while it waits

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # the agent waits for its children
    try:
        os.execv(then[0], [*then, "--since", str(time.monotonic())])  # noqa: S606  see above
    except OSError as error:
        _say(log_format, "ERROR", f"cannot terminate in order: {then[0]}: {error.strerror}")
    return 1


def main(argv: list[str]) -> int:
    """Arguments: the lock's descriptor, the flag's path, text or json, and the next command."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    if len(argv) < 3 or not _is_open(argv[0]):
        by_hand = (
            "error: this is what `nodeagent run` becomes when it is ready; "
            "it needs the lock it holds\nhint: start `nodeagent run`\n"
        )
        os.write(2, by_hand.encode())
        return EXIT_USAGE
    return until_stopped(argv[1], argv[2], argv[3:])


def _is_open(number: str) -> bool:
    try:
        os.fstat(int(number))
    except (ValueError, OverflowError, OSError):
        return False
    return True


def reap() -> None:
    """Take the exit statuses of children that have ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def _say(log_format: str, level: str, message: str) -> None:
    import json  # noqa: PLC0415  not before, to save memory while it waits
    import time  # noqa: PLC0415

    now = time.time()
    if log_format == "json":
        clock = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
        line = json.dumps(
            {
                "time": f"{clock}.{int(now % 1 * 1000):03d}Z",
                "level": level.lower(),
                "logger": "nodeagent.agent.hold",
                "message": message,
            }
        )
    else:
        clock = time.strftime("%H:%M:%S", time.gmtime(now))
        line = f"{clock}.{int(now % 1 * 1000):03d} {level:<5} {message}"
    os.write(2, f"{line}\n".encode())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
