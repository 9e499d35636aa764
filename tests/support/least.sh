#!/bin/bash
# The least that puts VFs back into their pods after a reload of the driver, and is still right: all
# is known beforehand (names, MACs, addresses), nothing is looked at, nothing is checked. What pods
# wait for is then what the driver, the kernel and udev take. tests/support/pods.py writes what it
# reads: `pfs` (address, name and MTU, a line each), and for ip(8) `held.ip`, `moves.ip`, and for each
# pod `PID.inside`.
# Usage: least.sh DIRECTORY
set -euo pipefail
cd "${1:?}"
devices=/sys/bus/pci/devices

/etc/init.d/openibd restart >/dev/null
udevadm settle
while read -r pf name mtu; do
    ip link set dev "$name" mtu "$mtu" up
    echo 0 >"$devices/$pf/sriov_drivers_autoprobe"
done <pfs
while read -r pf _; do
    echo 7 >"$devices/$pf/sriov_numvfs" &
done <pfs
wait
ip -batch held.ip
while read -r pf _; do
    {
        echo 1 >"$devices/$pf/sriov_drivers_autoprobe"
        for vf in "$devices/$pf"/virtfn*; do
            vf=$(readlink "$vf")
            echo "${vf##*/}" >/sys/bus/pci/drivers/mlx5_core/bind
        done
    } &
done <pfs
wait
udevadm settle
ip -batch moves.ip
for pod in *.inside; do
    nsenter --net="/proc/${pod%.inside}/ns/net" ip -batch "$pod"
done
