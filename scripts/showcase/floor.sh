#!/bin/bash
# The floor for scripts/bench: the shortest way to make the VFs of vfs.write_recipe that is still
# right. Each VF is probed once; everything is known beforehand (addresses, names, values), nothing
# is looked at, nothing is checked. What is left is what the kernel and udev take.
# Prints the time at the end of each part, by the name that nodeagent has for that stage. With
# `at-once` the VFs of a PF are bound side by side, not one after the other.
set -euo pipefail
cd "${1:?usage: floor.sh DIRECTORY (of vfs.write_recipe) [at-once]}"
at_once=${2:-}
devices=/sys/bus/pci/devices
mapfile -t pfs <pfs

ended() {
    echo "$EPOCHREALTIME $*"
}

ended begin
for pf in "${pfs[@]}"; do
    {
        echo 0 >"$devices/$pf/sriov_drivers_autoprobe"
        echo 7 >"$devices/$pf/sriov_numvfs"
    } &
done
wait
ended create VFs
ip -batch prepare.ip
ended prepare PFs
ip -batch held.ip
ended set VFs
for pf in "${pfs[@]}"; do
    {
        echo 1 >"$devices/$pf/sriov_drivers_autoprobe"
        while read -r vf; do
            if [ -n "$at_once" ]; then
                echo "$vf" >/sys/bus/pci/drivers/mlx5_core/bind &
            else
                echo "$vf" >/sys/bus/pci/drivers/mlx5_core/bind
            fi
        done <"$pf.vfs"
        wait
    } &
done
wait
ended bind VFs
udevadm settle
ip -batch own.ip
ended set VF netdevs
ip -batch late.ip
ended set VFs late
