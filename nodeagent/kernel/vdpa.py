"""vDPA devices and the functions that they are made of: the generic netlink family vdpa.

The numbers are those of uapi/linux/vdpa.h. Only network devices are read (VIRTIO_ID_NET).
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Mapping
from typing import Final

from nodeagent.kernel.genl import HEADER, Genl
from nodeagent.kernel.netlink import (
    NLM_F_ACK,
    NLM_F_DUMP,
    attributes,
    mac_bytes,
    text,
    text_bytes,
    understood,
)
from nodeagent.state.addresses import Mac
from nodeagent.state.model import VDPA_NAME, DeviceHandle, Vdpa

CMD_MGMTDEV_GET: Final = 2
CMD_DEV_NEW: Final = 3
CMD_DEV_DEL: Final = 4
CMD_DEV_GET: Final = 5
CMD_DEV_CONFIG_GET: Final = 6
MGMTDEV_BUS_NAME: Final = 1
MGMTDEV_DEV_NAME: Final = 2
DEV_NAME: Final = 4
DEV_ID: Final = 5
MACADDR: Final = 10
MAX_VQP: Final = 12
MTU: Final = 13
SUPPORTED_FEATURES: Final = 16
DEV_FEATURES: Final = 20
VIRTIO_ID_NET: Final = 1


class VdpaEdge(Genl):
    """A generic netlink socket of the vdpa family, which the module vdpa registers."""

    def __init__(self) -> None:
        super().__init__("vdpa")

    @understood("vDPA management devices")
    def managers(self) -> dict[DeviceHandle, int | None]:
        """The functions of which devices can be made, with the features that these may have."""
        messages = self._dump(CMD_MGMTDEV_GET)
        return {_manager(each): _number(each, SUPPORTED_FEATURES) for each in messages}

    @understood("vDPA devices")
    def devices(self) -> dict[DeviceHandle, tuple[Vdpa, ...]]:
        """By management device, its vDPA devices, sorted, without their drivers: three requests."""
        supported = self.managers()
        made = {each[DEV_NAME]: _manager(each) for each in self._dump(CMD_DEV_GET)}
        found: dict[DeviceHandle, list[Vdpa]] = {each: [] for each in supported}
        for config in self._dump(CMD_DEV_CONFIG_GET):
            manager = made.get(config[DEV_NAME])
            if manager in found and VDPA_NAME.fullmatch(name := text(config[DEV_NAME])):
                found[manager].append(_device(name, config, supported[manager]))
        return {
            manager: tuple(sorted(devices, key=lambda each: each.name))
            for manager, devices in found.items()
        }

    def add(self, manager: DeviceHandle, wanted: Vdpa) -> None:
        """Make a device of a function. OSError."""
        parts = [
            (MGMTDEV_BUS_NAME, text_bytes(manager.bus)),
            (MGMTDEV_DEV_NAME, text_bytes(manager.name)),
            (DEV_NAME, text_bytes(wanted.name)),
        ]
        if wanted.mac is not None and not wanted.mac.is_zero:
            parts.append((MACADDR, mac_bytes(wanted.mac)))
        for kind, form, value in (
            (MTU, "=H", wanted.mtu),
            (MAX_VQP, "=H", wanted.max_vqp),
            (DEV_FEATURES, "=Q", wanted.features),
        ):
            if value is not None:
                parts.append((kind, struct.pack(form, value)))
        self._do(CMD_DEV_NEW, *parts)

    def delete(self, name: str) -> None:
        """Remove a device. It waits until nobody has it open (vhost_vdpa_remove()). OSError."""
        self._do(CMD_DEV_DEL, (DEV_NAME, text_bytes(name)))

    def _do(self, command: int, *parts: tuple[int, bytes]) -> None:
        (error,) = self.send([self.message(command, NLM_F_ACK, *parts)])
        if error is not None:
            raise error

    def _dump(self, command: int) -> list[dict[int, bytes]]:
        if self.family is None:
            return []
        bodies = self.dump(self.message(command, NLM_F_DUMP), "vDPA devices")
        return [dict(attributes(body, HEADER)) for body in bodies]


def _manager(message: Mapping[int, bytes]) -> DeviceHandle:
    bus = text(message.get(MGMTDEV_BUS_NAME, b""))
    return DeviceHandle.reported(bus, text(message[MGMTDEV_DEV_NAME]))


def _device(name: str, config: Mapping[int, bytes], supported: int | None) -> Vdpa:
    mac = config.get(MACADDR)
    return Vdpa(
        name,
        mac=None if mac is None else Mac(mac.hex(":")),
        mtu=_number(config, MTU),
        max_vqp=_number(config, MAX_VQP),
        features=_number(config, DEV_FEATURES),
        supported=supported,
    )


def _number(message: Mapping[int, bytes], kind: int) -> int | None:
    return int.from_bytes(message[kind], sys.byteorder) if kind in message else None
