"""Network namespaces that hold interfaces of our VFs, as values: which one, and what is in it.

The kernel reuses the inode number of a namespace that is gone, so the number alone does not
identify one. A namespace is the same as before while one of its first holders holds it: a process
(by pid and start time) that is in it, or a mount of it. Since Linux 5.14 each also has a number
that is not reused until the next boot (SO_NETNS_COOKIE, socket(7)).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from nodeagent.state.stack import Stack


@dataclass(frozen=True)
class Holder:
    """What keeps a namespace: a process that is in it, or a mount of it (nsfs) at a path.

    `started` is in clock ticks since boot (field 22 of proc_pid_stat(5)).
    """

    pid: int | None = None
    started: int | None = None
    mount: str | None = None

    def __post_init__(self) -> None:
        is_process = self.pid is not None and self.started is not None and self.mount is None
        if not is_process and (self.mount is None or self.pid is not None):
            raise ValueError(f"{self} is neither a process nor a mount")
        if self.mount is not None and not self.mount.startswith("/"):
            raise ValueError(f"{self.mount!r} is not an absolute path")

    @property
    def path(self) -> str:
        """The path at which the namespace can be opened."""
        return f"/proc/{self.pid}/ns/net" if self.mount is None else self.mount


@dataclass(frozen=True)
class Namespace:
    """A network namespace: `device` and `inode` of nsfs, in the boot `boot`, and its `cookie`.

    `holders` is not empty. `process` (a holder's name), `pod` (its UID) and `container` are for
    people, "" if they are not known. `stack` is what is configured on our interfaces there,
    `sysctls` are the defaults of interfaces there.
    """

    device: int
    inode: int
    boot: str
    holders: tuple[Holder, ...] = field(compare=False)
    cookie: int | None = None
    process: str = field(default="", compare=False)
    pod: str = field(default="", compare=False)
    container: str = field(default="", compare=False)
    stack: Stack = field(default=Stack(), compare=False)
    sysctls: tuple[tuple[str, int], ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        if not self.holders:
            raise ValueError(f"namespace {self.inode} has no holder")

    def __str__(self) -> str:
        """`pod 0b1c…-…, container 5f2e (pause, pid 812)`, `/run/netns/blue`."""
        pid = next((holder.pid for holder in self.holders if holder.pid is not None), None)
        process = f"{self.process or 'process'}, pid {pid}" if pid is not None else ""
        if self.pod:
            words = f"pod {self.pod}" + (f", container {self.container}" if self.container else "")
        else:
            words = next((holder.mount for holder in self.holders if holder.mount), "a namespace")
        return f"{words} ({process})" if process else words

    @property
    def path(self) -> str:
        """The path at which it could be opened when it was observed."""
        return self.holders[0].path
