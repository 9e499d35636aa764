"""Reload the driver, restore the node's SR-IOV state exactly, and verify it.

Each step does nothing if its result is there already: after a crash the next start runs them all
again. What the kernel forgets is on disk, in the open snapshot. It is taken right before the
unload, never overwritten, and closed only after verify has passed and the ready flag is set.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from nodeagent.cleanup import attempt
from nodeagent.driver.nic import Loss, NicDriver
from nodeagent.errors import AgentError, KernelError, Stopped, WaitTimeout
from nodeagent.node import cni
from nodeagent.node.fatal import check_pfs
from nodeagent.node.node import Node
from nodeagent.node.observe import functions
from nodeagent.node.quiesce import quiesce, unbind_pfs
from nodeagent.node.settle import bind_pfs, wait_for_pfs
from nodeagent.record.journal import Journal, Note, Step
from nodeagent.record.timeline import CheckpointKind
from nodeagent.restore import note_vf_times, put_back, restore
from nodeagent.settings import Quiesce
from nodeagent.snapshot import take_snapshot
from nodeagent.state.model import Snapshot

log = logging.getLogger(__name__)


def reload(
    node: Node,
    journal: Journal,
    driver: NicDriver,
    *,
    before_snapshot: Callable[[], None] = lambda: None,
    without_vfs: Callable[[], None] = lambda: None,
    before_ready: Callable[[], None] = lambda: None,
) -> None:
    """Make the installed driver run, put the VFs back as they were, and set the ready flag.

    With nothing to reload and no snapshot open, no device is touched; the flag is not set while a
    PF's driver has not recovered from a fatal error. PFs that a killed process has
    left unbound are bound first, whatever follows: a build may need the network.
    `before_snapshot` is called before the snapshot is taken, `without_vfs` after VFs were removed
    (QUIESCE) and before the driver is unloaded, and `before_ready` right before the flag is set: it
    prepares what other pods use from then on. Until the VFs are restored, SR-IOV CNI is held off
    (HOLD_OFF). Raises AgentError with the ready flag absent and the snapshot, if one was taken,
    open for the next start.
    """
    journal.clear_ready()
    if (unfinished := journal.open_snapshot()) is not None:
        bind_pfs(node, unfinished.state)
    with journal.step(Step.BUILD):
        driver.ensure_built()
    note_srcversions(journal, driver)
    if driver.loaded_is_installed() and not journal.has_open_snapshot():
        check_pfs(node)
        log.info("the loaded driver is the installed one and nothing is left to restore")
        before_ready()
        journal.set_ready()
        return
    losses = preflight(node, journal, driver)
    before_snapshot()
    with cni.held_off(node, vf_addresses(node, journal)):
        snapshot = ensure_snapshot(node, journal, driver)
        with journal.step(Step.RESTART):
            restart(node, journal, driver, snapshot, without_vfs)
        for loss in losses:
            journal.note(Note.POD_INTERFACE_LOST, uid=loss.pod, message=loss.what)
        put_back(node, journal, snapshot)
    before_ready()
    journal.set_ready()
    journal.close_snapshot()


def preflight(node: Node, journal: Journal, driver: NicDriver) -> tuple[Loss, ...]:
    """Check that a reload is safe; return what pods will lose for good in it.

    If the reload is refused and a snapshot is open, its VFs are restored on the loaded driver: an
    earlier process may have been killed after it had removed them.
    """
    try:
        with journal.step(Step.PREFLIGHT):
            return driver.check_reload_is_safe()
    except Stopped:
        raise
    except AgentError:
        if (snapshot := journal.open_snapshot()) is not None:
            before = wanted_modules(driver, snapshot)
            with cni.held_off(node, vf_addresses(node, journal)):
                salvage(node, journal, driver, snapshot, before, why="the reload is refused")
        raise


def vf_addresses(node: Node, journal: Journal) -> tuple[str, ...]:
    """The PCI addresses of all VFs, present ones and those of an open snapshot."""
    snapshot = journal.open_snapshot()
    pfs = () if snapshot is None else snapshot.state.pfs
    gone = (vf.address for pf in pfs for vf in pf.vfs if vf.address is not None)
    return tuple(sorted({*functions(node), *gone}))


def ensure_snapshot(node: Node, journal: Journal, driver: NicDriver) -> Snapshot:
    """The open snapshot; if there is none, take and open one."""
    with journal.step(Step.SNAPSHOT):
        return journal.open_snapshot() or journal.save(take_snapshot(node, driver))


def restart(
    node: Node,
    journal: Journal,
    driver: NicDriver,
    snapshot: Snapshot,
    without_vfs: Callable[[], None] = lambda: None,
) -> None:
    """Load the installed driver; return when every module and PF of the snapshot is back."""
    before = wanted_modules(driver, snapshot)
    try:
        if not driver.loaded_is_installed():
            with bound_again(node, snapshot):
                driver.ensure_restarted(
                    lambda: remove_vfs(node, journal, driver, snapshot, without_vfs)
                )
            note_srcversions(journal, driver)
        driver.ensure_companions(before)
    except (KernelError, WaitTimeout):
        note_srcversions(journal, driver)
        salvage(node, journal, driver, snapshot, before)
        raise
    try:
        wait_for_pfs(node, snapshot.state)
    except WaitTimeout as error:
        log.warning("%s; restoring the others", error)
        attempt(lambda: restore(node, snapshot.state))
        raise
    journal.note(Note.DRIVER, version=driver.version() or "unknown")


def remove_vfs(
    node: Node,
    journal: Journal,
    driver: NicDriver,
    snapshot: Snapshot,
    without_vfs: Callable[[], None] = lambda: None,
) -> None:
    """Right before the driver is unloaded, note when the VFs go; unbind VFs and PFs (QUIESCE).

    The PFs stay bound if the unload would be refused. `without_vfs` is called before they are
    unbound: one may be the way to the API server.
    Raises Stopped, with all VFs still there, if a signal has arrived.
    """
    if node.stop is not None:
        node.stop.drain()
    journal.note(Note.VFS_GONE)
    if node.settings.quiesce is Quiesce.OFF:
        return
    with journal.step(Step.QUIESCE):
        pfs = quiesce(node, snapshot.state)
    without_vfs()
    if pfs and (why := driver.in_use()):
        log.warning("the PFs stay bound until the unload, which may fail: %s", "; ".join(why))
    elif pfs:
        with journal.step(Step.UNBIND):
            unbind_pfs(node, pfs)


@contextmanager
def bound_again(node: Node, snapshot: Snapshot) -> Iterator[None]:
    """If the block fails, bind the PFs that it has left unbound to the driver that is loaded."""
    try:
        yield
    except Exception:
        attempt(lambda: bind_pfs(node, snapshot.state))
        raise


def wanted_modules(driver: NicDriver, snapshot: Snapshot) -> tuple[str, ...]:
    """The modules that were loaded when the snapshot was taken, and those loaded since.

    A second attempt unloads auxiliary modules that were loaded after the first one.
    """
    names = (*(module for module, _ in snapshot.srcversions), *driver.companions())
    return tuple(dict.fromkeys(names))


def salvage(
    node: Node,
    journal: Journal,
    driver: NicDriver,
    snapshot: Snapshot,
    before: tuple[str, ...],
    *,
    why: str = "the restart failed",
) -> None:
    """After a failed restart, restore modules and VFs on the driver that is loaded, if any.

    Failures are logged, because the restart's own error is raised. The snapshot stays open.
    """
    if not driver.is_loaded():
        return
    log.warning("%s: restoring the VFs on the driver that is loaded", why)
    steps: tuple[Callable[[], object], ...] = (
        lambda: driver.ensure_companions(before),
        lambda: wait_for_pfs(node, snapshot.state),
        lambda: restore(node, snapshot.state),
    )
    succeeded = [attempt(step) for step in steps]
    note_vf_times(node, journal)
    if all(succeeded):
        journal.note(Note.VFS_BACK)


def note_srcversions(journal: Journal, driver: NicDriver) -> None:
    """Note each module's srcversion, on disk and in the kernel, as checkpoints of the timeline."""
    now = driver.srcversions()
    installed = {each.module: each.installed or "none" for each in now}
    loaded = {each.module: each.loaded or "none" for each in now}
    journal.note(Note.SRCVERSION, checkpoint=CheckpointKind.INSTALLED, **installed)
    journal.note(Note.SRCVERSION, checkpoint=CheckpointKind.LOADED, **loaded)
