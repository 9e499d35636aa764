"""The story: reload the driver and put the node's SR-IOV state back, exactly, proven.

Every verb is an *ensure*, so that resuming after a crash is running it again from the top. What
the kernel forgets is on disk: the open snapshot. It is taken right before the unload, never
overwritten, and closed only when verify passed and the ready flag is there.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from nodeagent import hostpath
from nodeagent.driver.nic import NicDriver
from nodeagent.errors import KernelError, RestoreFailed, WaitTimeout
from nodeagent.journal import POD_INTERFACE_LOST, Journal
from nodeagent.sriov import rdma
from nodeagent.sriov.differences import differences, headless, made_up, shared_macs, unseen
from nodeagent.sriov.ethtool import no_longer_offered
from nodeagent.sriov.managing import await_managers, managed
from nodeagent.sriov.model import NodeState, Snapshot
from nodeagent.sriov.node import Node
from nodeagent.sriov.perform import perform
from nodeagent.sriov.plan import plan
from nodeagent.sriov.plan_stack import without_stacked
from nodeagent.sriov.pods import LeftBehind

log = logging.getLogger(__name__)

ROUNDS: Final = 3
"""Plans in a row: what udev named differently, or a driver changed by itself, is planned again."""


def reload(
    node: Node, journal: Journal, driver: NicDriver, share: Callable[[], None] = lambda: None
) -> None:
    """The driver that is installed runs, the VFs are as they were, and the ready flag says so.

    With nothing to reload and no snapshot open, no device is touched. `share` is done right before
    ready: what others expect to find then. Raises AgentError with the ready flag absent and the
    snapshot, if one was taken, open for the next start.
    """
    journal.clear_ready()
    with journal.step("build"):
        driver.ensure_built()
    note_srcversions(journal, driver)
    if driver.loaded_is_installed() and not journal.has_open_snapshot():
        log.info("the loaded driver is the installed one and nothing is left to restore")
        share()
        journal.set_ready()
        return
    with journal.step("preflight"):
        losses = driver.check_reload_is_safe()
    with journal.step("snapshot"):
        snapshot = journal.open_snapshot() or journal.save(take_snapshot(node, driver))
    with journal.step("restart"):
        restart(node, journal, driver, snapshot)
    for loss in losses:
        journal.note(POD_INTERFACE_LOST, uid=loss.pod, message=loss.what)
    with journal.step("restore"):
        restore(node, snapshot.state)
        journal.note("vfs-back")
    with journal.step("verify"):
        prove(node, journal, snapshot.state)
    share()
    journal.set_ready()
    journal.close_snapshot()


def restart(node: Node, journal: Journal, driver: NicDriver, snapshot: Snapshot) -> None:
    """The installed driver is loaded, every module and every PF of the snapshot is back."""
    before = wanted_modules(driver, snapshot)
    try:
        if not driver.loaded_is_installed():
            journal.note("vfs-gone")
            driver.ensure_restarted()
            note_srcversions(journal, driver)
        driver.ensure_companions(before)
    except (KernelError, WaitTimeout):
        note_srcversions(journal, driver)
        salvage(node, journal, driver, snapshot, before)
        raise
    try:
        node.wait_for_pfs(snapshot.state)
    except WaitTimeout as error:
        log.warning("%s; restoring the others", error)
        restore_what_can_be(node, snapshot.state)
        raise
    journal.note("driver", version=driver.version() or "unknown")


def wanted_modules(driver: NicDriver, snapshot: Snapshot) -> tuple[str, ...]:
    """What was loaded when the snapshot was taken, and what has been loaded since.

    An auxiliary module that came after a first attempt is taken away by the second one.
    """
    names = (*(module for module, _ in snapshot.srcversions), *driver.companions())
    return tuple(dict.fromkeys(names))


def salvage(
    node: Node, journal: Journal, driver: NicDriver, snapshot: Snapshot, before: tuple[str, ...]
) -> None:
    """After a failed restart: modules and VFs as they were, on whatever driver runs then.

    As far as it goes: what fails here is logged, because the restart's own error is the one to
    raise. The snapshot stays open all the same.
    """
    if not driver.is_loaded():
        return
    log.warning("the restart failed: putting the VFs back on the driver that is loaded")
    verbs: tuple[Callable[[], None], ...] = (
        lambda: driver.ensure_companions(before),
        lambda: node.wait_for_pfs(snapshot.state),
        lambda: restore(node, snapshot.state),
    )
    failures = 0
    for verb in verbs:
        try:
            verb()
        except (KernelError, WaitTimeout, RestoreFailed) as error:
            failures += 1
            log.error("%s", error)  # noqa: TRY400 # no trace: it is no bug
    if not failures:
        journal.note("vfs-back")


def restore_what_can_be(node: Node, want: NodeState) -> None:
    """Beside an error that is going to be raised: the others need not suffer for it."""
    try:
        restore(node, want)
    except (KernelError, RestoreFailed) as error:
        log.error("%s", error)  # noqa: TRY400 # no trace: it is no bug


def restore(node: Node, want: NodeState) -> None:
    """Plan, perform, look again, until nothing is left to do.

    Where NetworkManager or systemd-networkd had set up an interface, that is what it gets to do
    first: all but what stands on interfaces is restored, and what it leaves missing is added then.

    Raises RestoreFailed with a line for each failed action and each thing that differs, when a
    plan could not be performed or three in a row did not lead there.
    """
    node.given_up.clear()
    node.contested.clear()
    failures: dict[str, None] = {}
    if others := managed(want):
        reachable, _ = node.reachable(want)
        stages = plan(reachable, node.observe())
        failures |= dict.fromkeys(perform(node, without_stacked(stages)))
        await_managers(node, others)
    for number in range(ROUNDS):
        reachable, _ = node.reachable(want)
        have = node.observe()
        stages = plan(_not_blocked(node, reachable), have)
        if not stages:
            break
        if number:
            node.contested.check(differences(reachable, have), failures)
        for pf in have.pfs:
            node.contested.found(str(pf.handle), "driver", have.driver)
        failures |= dict.fromkeys(perform(node, stages))
    else:
        reachable, _ = node.reachable(want)
        have = node.observe()
        node.contested.check(differences(reachable, have), failures, is_last=True)
    left = () if not stages and not node.blocked.lines() else differences(reachable, have)
    if left:
        raise RestoreFailed(
            f"{len(left)} attributes could not be restored",
            dict.fromkeys((*failures, *node.blocked.lines(), *map(str, left))),
            hint="the snapshot stays open: remove the cause and start again, or see `verify`",
        )


def _not_blocked(node: Node, want: NodeState) -> NodeState:
    """`want` without the PFs and VFs of which a call hangs in the kernel: the others go on."""
    pfs = (
        replace(pf, vfs=tuple(v for v in pf.vfs if not node.is_blocked((pf.handle, v.index))))
        for pf in want.pfs
        if not node.is_blocked((pf.handle, None))
    )
    return replace(want, pfs=tuple(pfs))


def prove(node: Node, journal: Journal, want: NodeState) -> None:
    """`verify`, with what pods have lost all the same on record."""
    for each in verify(node, want):
        journal.note(POD_INTERFACE_LOST, uid=each.namespace.pod, message=str(each))


def verify(node: Node, want: NodeState) -> tuple[LeftBehind, ...]:
    """Look at the node once more; RestoreFailed names every difference.

    Returns the VFs that could not be put back into their pods, because those are not there.
    """
    reachable, behind = node.reachable(want)
    have = node.observe()
    left = differences(reachable, have)
    if left:
        raise RestoreFailed(
            f"{len(left)} attributes are not as they were",
            map(str, left),
            hint="the snapshot stays open: start again, or see `nodeagent plan`",
        )
    for gone in no_longer_offered(want, have):
        log.warning("the driver does not have it any more: %s", gone)
    for shared in shared_macs(have):
        log.warning("VFs share a MAC, as they did before: %s", shared)
    for each in behind:
        log.warning("%s", each)
    return behind


def take_snapshot(node: Node, driver: NicDriver) -> Snapshot:
    """What the node looks like now, with when and where that was, to be kept.

    KernelError where a device does not tell its state: nothing would be known of it afterwards.
    """
    snapshot = look(node, driver)
    if blocked := node.blocked.lines():
        raise KernelError(
            f"cannot save the state of this node: {'; '.join(blocked)}",
            hint="a driver or a virtual machine keeps the device's lock: dmesg and "
            "/proc/PID/stack of the tasks in state D say which",
        )
    for pf in snapshot.state.pfs:
        if pf.numvfs is None and node.sysfs.functions(pf.handle.bus, pf.handle.name):
            raise KernelError(
                f"cannot save the state of {pf.handle}: it has VFs, and its sriov_numvfs tells no "
                "number",
                hint="`cat` it: the device may be failing, see dmesg",
            )
    return snapshot


def look(node: Node, driver: NicDriver) -> Snapshot:
    """The same to be compared: what a device does not tell is not known."""
    state = node.observe()
    for vf in unseen(state):
        log.warning(
            "%s: its interface is in a namespace that can't be seen (a pod's?); what its PF holds "
            "for it is restored, the interface comes back in the host's namespace",
            vf,
        )
    for pf in headless(state):
        log.warning(
            "%s: it has VFs and no interface in this network namespace: what it holds for them "
            "(MACs, VLANs, rates) is not known, and not put back",
            pf,
        )
    for vf in made_up(state):
        log.info("%s: its driver made this MAC up, and it is restored as its interface's own", vf)
    stacked = state.stack.lost if state.stack is not None else ()
    for lost in (*rdma.soft(state), *stacked, *node.children_elsewhere(state)):
        log.warning("%s: the reload takes it away, and it is not put back", lost)
    for namespace in state.namespaces:
        for lost in namespace.stack.lost:
            log.warning("%s in %s: the reload takes it away for good", lost, namespace)
    return Snapshot(
        taken_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        machine_id=machine_id(),
        boot_id=boot_id(),
        kernel=os.uname().release,
        srcversions=driver.modules_loaded(),
        state=state,
    )


def boot_id() -> str:
    """Which boot of the node this is (random(4))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


_MACHINE_ID: Final = Path("etc/machine-id")


def machine_id() -> str:
    """The host's machine-id(5), through the driver pod's mount of /etc where that is what we have.

    "" where there is none: such a snapshot is not bound to a machine.
    """
    for root in (Path("/host"), Path("/")):
        with suppress(OSError):
            return hostpath.read_text(hostpath.within(root, _MACHINE_ID)).strip()
    return ""


def note_srcversions(journal: Journal, driver: NicDriver) -> None:
    """A checkpoint for the timeline: each module's srcversion, on disk and in the kernel."""
    now = driver.srcversions()
    installed = {each.module: each.installed or "none" for each in now}
    loaded = {each.module: each.loaded or "none" for each in now}
    journal.note("srcversion", checkpoint="installed", **installed)
    journal.note("srcversion", checkpoint="loaded", **loaded)
