#!/bin/sh
# Builds the NIC driver in the OpenShift Driver Toolkit's container: waits for the start flag, runs
# install.pl, and says how it ended by a done flag or a failure marker. It needs nothing but a shell
# and what the toolkit has. Written beside its sources by nodeagent, like dtk.env with its settings.
set -eu

here=$(dirname "$0")
# shellcheck source=/dev/null
. "$here/dtk.env"
: "${DTK_OCP_NIC_SHARED_DIR:?}" "${DTK_OCP_COMPILED_DRIVER_VER:?}"
: "${DTK_OCP_START_COMPILE_FLAG:?}" "${DTK_OCP_DONE_COMPILE_FLAG:?}"

start=$DTK_OCP_START_COMPILE_FLAG
flag=$DTK_OCP_DONE_COMPILE_FLAG
name=$(basename "$flag")
failed=$(dirname "$flag")/dtk_failed_compile_${name#dtk_done_compile_}
sources=$DTK_OCP_NIC_SHARED_DIR/MLNX_OFED_SRC-$DTK_OCP_COMPILED_DRIVER_VER
module=${DRIVER_MODULE:-mlx5_core}
work=$(mktemp -d)
log=$work/log
pipe=$work/pipe
job=
nap=

say() {
    echo "[$(date +%H:%M:%S)] $*"
}

# A signal ends everything. The start flag stays, so that the next container builds.
stopped() {
    [ -z "$job" ] || kill -s TERM -- "-$job" 2>/dev/null || kill -s TERM "$job" 2>/dev/null || :
    [ -z "$nap" ] || kill "$nap" 2>/dev/null || :
    rm -rf "$work"
    say "stopped"
    exit "$1"
}
trap 'stopped 143' TERM INT

# sleep(1) alone would keep a signal waiting until it has ended.
pause() {
    sleep "$1" &
    nap=$!
    wait "$nap"
    nap=
}

# A file appears under its name when its content is complete.
publish() {
    cat >"$1.tmp"
    sync
    mv -f "$1.tmp" "$1"
}

fail() {
    say "$*" | tee -a "$log"
    tail -n 20 "$log" | publish "$failed"
    rm -f "$start"
    rm -rf "$work"
    exit 1
}

# Runs a command in a session of its own, so that a signal reaches all that it starts; its output
# is streamed and kept.
run() {
    say "running $*"
    rm -f "$pipe"
    mkfifo "$pipe"
    tee -a "$log" <"$pipe" &
    reader=$!
    setsid "$@" >"$pipe" 2>&1 &
    job=$!
    status=0
    wait "$job" || status=$?
    job=
    wait "$reader" || :
    return "$status"
}

tools() {
    missing=
    for tool in perl ethtool autoconf pciutils automake libtool python3-devel; do
        rpm -q --whatprovides "$tool" >/dev/null 2>&1 || missing="$missing $tool"
    done
    [ -n "$missing" ] || return 0
    if ! command -v dnf >/dev/null; then
        say "not installed, and there is no dnf:$missing"
        return 0
    fi
    # shellcheck disable=SC2086 # a list of words
    run dnf install -y $missing || fail "dnf could not install$missing"
}

# Every package must be whole, and one of them must bring the driver.
check() {
    count=0
    brings=
    for package in "$sources"/RPMS/*/"$(uname -m)"/*.rpm; do
        [ -e "$package" ] || continue
        rpm -K --nosignature "$package" >>"$log" 2>&1 || fail "a damaged package: $package"
        if rpm -qp --nosignature -l "$package" | grep -F "/modules/$(uname -r)/" |
            grep -q "/$module\.ko"; then
            brings=$package
        fi
        count=$((count + 1))
    done
    [ "$count" -gt 0 ] || fail "install.pl left no packages in $sources/RPMS"
    [ -n "$brings" ] || fail "none of the $count packages brings $module for $(uname -r)"
}

: >"$log"
say "waiting for $start"
while ! [ -e "$start" ]; do
    pause 3
done
rm -f "$failed" "$flag"
tools
# Each word of the variable is quoted for a shell: nodeagent's doing.
eval "set -- ${APPEND_DRIVER_BUILD_FLAGS:-}"
run "$sources/install.pl" --build-only --kernel-only \
    --without-knem --without-iser --without-isert --without-srp \
    --with-mlnx-tools --with-ofed-scripts --copy-ifnames-udev \
    --disable-kmp --without-dkms "$@" || fail "install.pl exited $status"
check
publish "$flag" </dev/null
rm -f "$start"
rm -rf "$work"
say "$count packages are built: $flag"

# The container would be started again if this ended. Another build may be asked for, with other
# settings.
trap 'stopped 0' TERM INT
while ! [ -e "$start" ]; do
    pause 3
done
exec "$0"
