#!/bin/bash
# The reference for scripts/bench: how the driver container's entrypoints restore VFs in 2026, with
# their fixed sleeps: BIND_DELAY_SEC after the VFs are made and after each bind, a process for each
# attribute, each VF taken from its driver and bound again. One PF after the other.
# Unlike them it also puts VLAN, QoS, trust, spoofchk and rates back, so that the work is the same.
set -euo pipefail
cd "${1:?usage: reference.sh DIRECTORY (of vfs.write_recipe)}"
delay=${BIND_DELAY_SEC:-4}
devices=/sys/bus/pci/devices
driver=/sys/bus/pci/drivers/mlx5_core

# The netdev of a device, by the name it has now.
netdev() {
    local path=("$devices/$1/net/"*)
    echo "${path[0]##*/}"
}

# set_each FILE TARGET: the attributes that the file has, one command each.
set_each() {
    local words
    while read -ra words; do
        ip link set dev "${@:2}" "${words[@]}"
    done <"$1"
}

while read -r pf; do
    name=$(netdev "$pf")
    ip link set dev "$name" up
    echo 7 >"$devices/$pf/sriov_numvfs"
    sleep "$delay"
    index=0
    while read -r vf; do
        set_each "$vf.held" "$name" vf $index
        echo "$vf" >"$driver/unbind"
        echo "$vf" >"$driver/bind"
        sleep "$delay"
        set_each "$vf.own" "$(netdev "$vf")"
        set_each "$vf.late" "$name" vf $index
        index=$((index + 1))
    done <"$pf.vfs"
    ip link set dev "$name" mtu 9000
done <pfs
