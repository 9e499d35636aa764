#!/bin/bash
# The floor for scripts/bench: the shortest way to make the VFs of vfs.write_recipe that is still
# right. Each VF is probed once; everything is known beforehand (addresses, names, values), nothing
# is looked at, nothing is checked. What is left is what the kernel and udev take.
# Prints the time at the end of each part, by the name that nodeagent has for that stage.
set -euo pipefail
cd "${1:?usage: floor.sh DIRECTORY (of vfs.write_recipe)}"
devices=/sys/bus/pci/devices
mapfile -t pfs <pfs

ended() {
    echo "$EPOCHREALTIME $*"
}

ended begin
ip -batch prepare.ip
ended prepare PFs
for pf in "${pfs[@]}"; do
    {
        echo 0 >"$devices/$pf/sriov_drivers_autoprobe"
        echo 7 >"$devices/$pf/sriov_numvfs"
    } &
done
wait
ended create VFs
ip -batch held.ip
ended set VFs
for pf in "${pfs[@]}"; do
    {
        echo 1 >"$devices/$pf/sriov_drivers_autoprobe"
        while read -r vf; do
            echo "$vf" >/sys/bus/pci/drivers/mlx5_core/bind
        done <"$pf.vfs"
    } &
done
wait
ended bind VFs
udevadm settle
ip -batch own.ip
ended set VF netdevs
ip -batch late.ip
ended set VFs late
