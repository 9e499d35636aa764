"""Calls into the kernel that do not come back, and what must not be asked meanwhile.

The kernel holds a device's lock while its driver is probed or removed and while its VFs are made
(drivers/base/dd.c, drivers/pci/iov.c). Where that hangs (firmware that does not answer, a VF that a
virtual machine has open), so does every other write to the device, and so does whoever reads its
`sriov_numvfs` or `driver_override`, because both take that lock: without a deadline of their own,
and deaf to signals. So these two are read in a thread, and of a device that does not answer nothing
more is asked until its call has ended.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

from nodeagent.errors import WaitTimeout
from nodeagent.kernel.events import Watch, wait_until_clear
from nodeagent.kernel.parallel import Running

Device = tuple[str, str]
"""Bus and name."""

T = TypeVar("T")


class Blocked:
    """The devices of which a call had not come back at its deadline, and still has not."""

    def __init__(self) -> None:
        self._calls: dict[Device, tuple[threading.Event, str]] = {}

    def __contains__(self, device: Device | None) -> bool:
        known = None if device is None else self._calls.get(device)
        return known is not None and not known[0].is_set()

    def add(self, device: Device, ended: threading.Event, what: str) -> None:
        """`ended` is set when the call comes back after all; `what` is a line for people."""
        self._calls[device] = ended, what

    def lines(self) -> tuple[str, ...]:
        """What is blocked now, a line a device."""
        return tuple(what for device, (_, what) in self._calls.items() if device in self)

    def read(
        self,
        devices: Sequence[Device],
        look: Callable[[Device], T],
        *stops: Watch,
        timeout: float,
    ) -> dict[Device, T]:
        """What `look` says of each device, without those that do not answer within `timeout` s.

        Raises what a stop's drain() raises (Stopped).
        """
        found: dict[Device, T] = {}
        left = [device for device in devices if device not in self]
        while left:
            reader = _Reader(left, look, found)
            with Running([reader.run], threads=1) as running:

                def unanswered(running: Running = running) -> Iterator[str]:
                    if running.unfinished():
                        yield "an answer"

                try:
                    wait_until_clear(unanswered, running, *stops, what="sysfs", timeout=timeout)
                except WaitTimeout:
                    silent = reader.give_up()
                else:
                    break
            text = f"{'/'.join(silent)}: the kernel has not told its state for {timeout:g} s"
            self.add(silent, reader.ended, f"{text}; the thread that asked is left there")
            left = left[left.index(silent) + 1 :]
        return found


class _Reader(Generic[T]):
    """Looks at one device after the other, in a thread; nobody else writes `found` meanwhile."""

    def __init__(
        self, devices: Sequence[Device], look: Callable[[Device], T], found: dict[Device, T]
    ) -> None:
        self._devices, self._look, self._found = devices, look, found
        self._given_up = threading.Event()
        self.ended = threading.Event()

    def run(self) -> None:
        for device in self._devices:
            said = self._look(device)
            if self._given_up.is_set():
                break
            self._found[device] = said
        self.ended.set()

    def give_up(self) -> Device:
        """What it waits for an answer of."""
        self._given_up.set()
        return next(device for device in self._devices if device not in self._found)
