"""In a node that is saved in the middle of this, and resumed elsewhere: a ConnectX at work.

It tells on the console, because that is all that a resumed machine shares with its launcher.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support import connectx, lab
from tests.support.lab import PF1

COMMAND_US = 2_000_000
"""What each command of firmware takes while the machine is saved."""
MAC = "02:00:00:00:00:11"


def say(word: str) -> None:
    sys.stdout.write(word + "\n")
    sys.stdout.flush()


def answers() -> bool:
    """Whether a frame comes from VF 0 to VF 1 and another one back: neighbour discovery, anew."""
    lab.sh("ip -n saved0 neigh flush all; ip -n saved1 neigh flush all")
    lab.sh("ip netns exec saved0 bash -c 'echo > /dev/udp/10.9.0.2/7' || true; sleep 2")
    return "lladdr" in lab.sh("ip -n saved0 neigh show 10.9.0.2")


def waits_for_firmware(pid: int) -> bool:
    """Whether a process sleeps in a command of mlx5_core: its stack, in the kernel."""
    asleep = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(") ")[2][0] == "D"
    return asleep and "mlx5_cmd" in Path(f"/proc/{pid}/stack").read_text(encoding="ascii")


def main() -> None:
    # a mounted share keeps QEMU from saving the machine
    lab.sh("umount /share")
    lab.ip(f"link set {lab.name(PF1)} up")
    lab.create_vfs(PF1, 3)
    lab.ip(f"link set {lab.name(PF1)} vf 2 vlan 5")
    for n in range(2):
        interface = lab.name(lab.vf(PF1, n))
        lab.sh(
            f"ip netns add saved{n}; ip link set {interface} netns saved{n};"
            f"ip -n saved{n} link set {interface} up;"
            f"ip -n saved{n} addr add 10.9.0.{n + 1}/24 dev {interface}"
        )
    assert answers()
    monitor = connectx.Monitor()
    path = "/machine/peripheral/pf0"
    monitor.command("qom-set", path=path, property="fw-command-us", value=COMMAND_US)
    monitor.close()
    setting = subprocess.Popen(["ip", "link", "set", lab.name(PF1), "vf", "0", "mac", MAC])
    # ip may be slower to start than the launcher is to save the machine
    while not waits_for_firmware(setting.pid):
        pass
    say("saved: now")
    while setting.poll() is None:  # virtual time does not leap while the processor works
        pass
    assert setting.returncode == 0
    told = lab.sh(f"ip link show {lab.name(PF1)}")
    assert MAC in told, told
    assert "vlan 5" in told, told
    assert answers()
    connectx.switch(PF1)
    assert len(lab.representors(PF1)) == 3
    say("saved: as before")


if __name__ == "__main__":
    main()
