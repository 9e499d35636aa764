"""What the queues of an interface have in sysfs (RPS, RFS, XPS), and two times of NAPI.

A value has a word for each queue, in their order, as its file shows it without leading zeros. No
driver sets these, but for `xps_cpus`, which mlx5 sets when its channels change
(mlx5e_set_default_xps_cpumasks()).

Documentation/ABI/testing/sysfs-class-net-queues, Documentation/networking/scaling.rst.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

FILES: Final = {
    "queues.rps_cpus": "queues/rx-{}/rps_cpus",
    "queues.rps_flow_cnt": "queues/rx-{}/rps_flow_cnt",
    "queues.xps_cpus": "queues/tx-{}/xps_cpus",
    "queues.xps_rxqs": "queues/tx-{}/xps_rxqs",
    "napi.defer_hard_irqs": "napi_defer_hard_irqs",
    "napi.gro_flush_timeout": "gro_flush_timeout",
}
"""By setting, the file below the interface's directory; `{}` is the queue's number. Not `threaded`:
the kernel refuses that while an interface has no NAPI, as one of mlx5 that is down (EOPNOTSUPP)."""


def agree(key: str, want: object, have: object) -> bool:
    """Whether a setting is as wanted. Queues that only one side has are not compared: how many
    there are is a matter of channels, and of mqprio in hardware mode."""
    if want == have or key not in FILES:
        return want == have
    pairs = zip(str(want).split(), str(have).split(), strict=False)
    return all(wanted == now for wanted, now in pairs)


def commands(key: str, value: str, name: str) -> Iterator[str]:
    """`echo f | tee /sys/class/net/enp1s0/queues/rx-*/rps_cpus`, or a line for each queue."""
    path, words = f"/sys/class/net/{name}/{FILES[key]}", value.split()
    if len({*words}) == 1:
        yield f"echo {words[0]} | tee {path.format('*')}"
    else:
        yield from (f"echo {word} | tee {path.format(n)}" for n, word in enumerate(words))
