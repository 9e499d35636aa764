"""The lab's agent in the guest: runs one command that the launcher asks for.

It is started before the machine state is saved and then blocks on the control port, so a resumed
guest acts at once. Three virtio-serial ports lead to the launcher: lab.ctl (a JSON object a line,
both ways), lab.out and lab.err (the command's output; in a shell, lab.out also brings the keys).
"""

import errno
import fcntl
import json
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from typing import Any

PORTS = "/dev/virtio-ports"
ALIVE_SECONDS = 5
CHUNK = 65536


def main() -> None:
    control = os.open(f"{PORTS}/lab.ctl", os.O_RDWR | os.O_CLOEXEC)
    out = Port(os.open(f"{PORTS}/lab.out", os.O_RDWR | os.O_CLOEXEC))
    err = Port(os.open(f"{PORTS}/lab.err", os.O_WRONLY | os.O_CLOEXEC))
    send(control, {"ready": True})
    request = receive(control)
    time.clock_settime_ns(time.CLOCK_REALTIME, request["clock_ns"])
    prepare()
    if request["terminal"]:
        status = run_on_terminal(request, control, out)
    else:
        status = run(request, control, out, err)
    # Ports are independent queues: the counts tell the launcher when it has read everything.
    send(control, {"exit": status, "out": out.written, "err": err.written})
    while True:  # the launcher ends the machine
        os.read(control, 1)


class Port:
    """A descriptor to write to, and how much was written."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.written = 0

    def write(self, data: bytes) -> None:
        while data:
            count = os.write(self.fd, data)
            self.written += count
            data = data[count:]


def prepare() -> None:
    """The share that only exists from now on, and the working tree that came with it.

    /host is in memory, with links to what is on the share: while the guest waits for the machine
    outside, a virtual clock leaps to the next timer, and what runs against a deadline has lost.
    """
    for command in (
        "mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,cache=none host /share",
        "mount -t tmpfs -o mode=755 host /host",
        "ln -s /share/* /host",
        "tar -C /opt/nodeagent -xf /share/tree.tar",
    ):
        subprocess.run(["/bin/sh", "-c", command], check=True)


def run(request: dict[str, Any], control: int, out: Port, err: Port) -> int:
    """Run the command, passing its output on while it runs. Returns its exit status.

    The command writes to pipes and not to the ports: a port can be opened only once, and
    /dev/stdout would open it again.
    """
    pipes = {os.pipe(): out, os.pipe(): err}
    (_, stdout), (_, stderr) = pipes
    try:
        process = subprocess.Popen(
            request["command"],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            cwd=request["directory"],
            env=request["environment"],
            start_new_session=True,
        )
    except OSError as error:
        err.write(f"lab: cannot run {request['command'][0]}: {error.strerror}\n".encode())
        return 127 if error.errno == errno.ENOENT else 126
    os.close(stdout)
    os.close(stderr)
    ports = {pipe: port for (pipe, _), port in pipes.items()}
    ended = os.pidfd_open(process.pid)
    pump(ports, ended, control)
    # What it wrote last. Children that it left behind may hold the pipes open: no wait for them.
    for pipe, port in ports.items():
        os.set_blocking(pipe, False)
        while data := read_available(pipe):
            port.write(data)
    status = process.wait()
    return status if status >= 0 else 128 - status


def run_on_terminal(request: dict[str, Any], control: int, port: Port) -> int:
    """Run the command on a terminal of its own, its keys coming from the port."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(request["directory"])
        os.execvpe(request["command"][0], request["command"], request["environment"])
    rows, columns = request["terminal"]
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    pump({terminal: port, port.fd: Port(terminal)}, os.pidfd_open(pid), control)
    os.set_blocking(terminal, False)
    while data := read_available(terminal):
        port.write(data)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status if status >= 0 else 128 - status


def pump(routes: dict[int, Port], ended: int, control: int) -> None:
    """Copy from each descriptor to its target until the process has ended."""
    poll = select.poll()
    for source in (*routes, ended):
        poll.register(source, select.POLLIN)
    while True:
        events = poll.poll(ALIVE_SECONDS * 1000)
        if not events:
            send(control, {"alive": time.monotonic()})
        for source, _ in events:
            if source == ended:
                return
            data = read_available(source)
            if data:
                routes[source].write(data)
            else:
                poll.unregister(source)


def read_available(source: int) -> bytes:
    """What there is to read; nothing at the end, on an empty pipe, or on a terminal hung up."""
    try:
        return os.read(source, CHUNK)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EIO):
            return b""
        raise


def send(control: int, message: dict[str, Any]) -> None:
    Port(control).write(json.dumps(message).encode() + b"\n")


def receive(control: int) -> dict[str, Any]:
    line = b""
    while not line.endswith(b"\n"):
        data = os.read(control, CHUNK)
        if not data:
            sys.exit("the launcher closed the control port")
        line += data
    request: dict[str, Any] = json.loads(line)
    return request


main()
