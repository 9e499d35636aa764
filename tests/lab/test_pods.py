"""Pods keep their interfaces: a reload with VFs in other network namespaces."""

from __future__ import annotations

from tests.support import lab
from tests.support.lab import PF1, Nodeagent
from tests.support.pods import Pod, give


def test_two_pods(nodeagent: Nodeagent, no_vfs: None) -> None:
    with Pod() as one, Pod() as two:
        lab.create_vfs(PF1, 3)
        give([one, two], PF1)
        one.ip(
            "route add 192.0.2.0/24 via 10.1.0.2",
            "link add link net1 name net1.5 type vlan id 5",
            "link set net1.5 up",
        )
        lab.sh("sleep 2")
        before = [one.read(), two.read()]
        wanted = lab.put_other_build_on_disk()
        nodeagent.call("reload")
        assert lab.loaded() == wanted
        lab.sh("sleep 2")
        assert [one.read(), two.read()] == before
