#!/bin/bash
# The reference for scripts/bench: how the driver container's entrypoints restore VFs in 2026, with
# their fixed sleeps: BIND_DELAY_SEC after the VFs are made and after each bind, a process for each
# attribute, each VF taken from its driver and bound again. One PF after the other.
# Unlike them it also puts VLAN, QoS, trust, spoofchk and rates back, so that the work is the same.
set -euo pipefail
cd "${1:?usage: reference.sh DIRECTORY (of Recipe.write)}"
delay=${BIND_DELAY_SEC:-4}
devices=/sys/bus/pci/devices
driver=/sys/bus/pci/drivers/mlx5_core

# The netdev of a device, by the name it has now.
netdev() {
    local path=("$devices/$1/net/"*)
    echo "${path[0]##*/}"
}

# set_each FILE DEVICE [vf N]: the attributes that a batch has for it, one command each.
set_each() {
    local file=$1 target="${*:2} " line words
    while read -r line; do
        [[ $line == "link set dev $target"* ]] || continue
        read -ra words <<<"${line#"link set dev $target"}"
        while ((${#words[@]})); do
            case ${words[0]} in
            up | down)
                ip link set dev "${@:2}" "${words[0]}"
                words=("${words[@]:1}")
                ;;
            vlan)
                ip link set dev "${@:2}" "${words[@]:0:4}"
                words=("${words[@]:4}")
                ;;
            *)
                ip link set dev "${@:2}" "${words[@]:0:2}"
                words=("${words[@]:2}")
                ;;
            esac
        done
    done <"$file.ip"
}

while read -r pf; do
    name=$(netdev "$pf")
    ip link set dev "$name" up
    echo 7 >"$devices/$pf/sriov_numvfs"
    sleep "$delay"
    index=0
    while read -r vf; do
        set_each held "$name" vf $index
        echo "$vf" >"$driver/unbind"
        echo "$vf" >"$driver/bind"
        sleep "$delay"
        set_each own "$(netdev "$vf")"
        set_each late "$name" vf $index
        index=$((index + 1))
    done <"$pf.vfs"
    set_each prepare "$name"
done <pfs
