#!/bin/bash
# For scripts/bench, before its floor: the VFs of vfs.write_recipe are unbound side by side and removed,
# so that an unload of the driver finds none. Nothing is looked at, nothing is checked.
set -euo pipefail
cd "${1:?usage: quiesce.sh DIRECTORY (of vfs.write_recipe)}"
mapfile -t pfs <pfs

for pf in "${pfs[@]}"; do
    while read -r vf; do
        echo "$vf" >/sys/bus/pci/drivers/mlx5_core/unbind &
    done <"$pf.vfs"
done
wait
for pf in "${pfs[@]}"; do
    echo 0 >"/sys/bus/pci/devices/$pf/sriov_numvfs" &
done
wait
