"""System calls that hang, and their devices, which are not used until the call returns.

The kernel holds a device's lock while its driver is probed or removed and while its VFs are created
(drivers/base/dd.c, drivers/pci/iov.c). If that hangs (the firmware does not answer, a virtual
machine has a VF open), every other write to the device hangs, too, and so does a read of its
`sriov_numvfs` or `driver_override`, because both take that lock, without a time limit and
uninterruptibly. These two are therefore read in a thread, and a device that does not answer is not
used until the call has returned.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

from nodeagent.errors import WaitTimeout
from nodeagent.kernel.events import Watch, wait_until_clear
from nodeagent.kernel.parallel import Running
from nodeagent.state.model import DeviceHandle

T = TypeVar("T")


class HungCalls:
    """By device, a call that did not return in time. It is removed when it returns after all."""

    def __init__(self) -> None:
        self._calls: dict[DeviceHandle, tuple[threading.Event, str]] = {}

    def __contains__(self, device: DeviceHandle | None) -> bool:
        known = None if device is None else self._calls.get(device)
        return known is not None and not known[0].is_set()

    def add(self, device: DeviceHandle, ended: threading.Event, what: str) -> None:
        """`ended` is set when the call returns after all; `what` is a message."""
        self._calls[device] = ended, what

    def lines(self) -> tuple[str, ...]:
        """A message for each device with a call that hangs now."""
        return tuple(what for device, (_, what) in self._calls.items() if device in self)

    def read(
        self,
        devices: Sequence[DeviceHandle],
        look: Callable[[DeviceHandle], T],
        *stops: Watch,
        timeout: float,
    ) -> dict[DeviceHandle, T]:
        """The result of `look` for each device that answers within `timeout` seconds.

        Raises what a stop's drain() raises (Stopped).
        """
        found: dict[DeviceHandle, T] = {}
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
            text = f"{'/'.join(silent)}: the kernel has not reported its state for {timeout:g} s"
            self.add(silent, reader.ended, f"{text}; the thread that asked is left there")
            left = left[left.index(silent) + 1 :]
        return found


class _Reader(Generic[T]):
    """Looks at one device after the other, in a thread; only that thread writes to `found`."""

    def __init__(
        self,
        devices: Sequence[DeviceHandle],
        look: Callable[[DeviceHandle], T],
        found: dict[DeviceHandle, T],
    ) -> None:
        self._devices, self._look, self._found = devices, look, found
        self._given_up = threading.Event()
        self.ended = threading.Event()

    def run(self) -> None:
        for device in self._devices:
            answer = self._look(device)
            if self._given_up.is_set():
                break
            self._found[device] = answer
        self.ended.set()

    def give_up(self) -> DeviceHandle:
        """Stop after the device that it is waiting for; return that device."""
        self._given_up.set()
        return next(device for device in self._devices if device not in self._found)
