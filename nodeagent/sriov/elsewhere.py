"""Children of our interfaces in other network namespaces: a CNI makes a MACVLAN, and a pod has it.

They die with their parent wherever they are, and are told before; who made them has to do it again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping

from nodeagent.errors import KernelError
from nodeagent.kernel import linkinfo
from nodeagent.kernel.netns import NamespaceGone, Namespaces, here
from nodeagent.sriov.inside import Room

log = logging.getLogger(__name__)


def children_elsewhere(
    namespaces: Namespaces, names: Mapping[int, str], room: Callable[[int], Room] = Room.open
) -> Iterator[str]:
    """`macvlan net1 on enp1s0 in …` for each; `names` are those of our interfaces, by ifindex.

    A namespace that goes while it is looked at has none.
    """
    with here() as own:
        for inode, holders in namespaces.scan().items():
            try:
                with namespaces.seen(inode, holders) as fd, room(fd) as inside:
                    number = inside.rtnl.number_of(own)
                    place = namespaces.described(fd, holders)
                    for link in inside.rtnl.links().values():
                        parent, where = link.elsewhere or (0, None)
                        if parent in names and number is not None and where == number:
                            kind = linkinfo.decoded(link.info).kind or "interface"
                            yield f"{kind} {link.name} on {names[parent]} in {place}"
            except NamespaceGone as gone:
                log.debug("network namespace %d: %s", inode, gone.message)
            except (KernelError, OSError) as error:
                log.warning("network namespace %d can't be looked at: %s", inode, error)
