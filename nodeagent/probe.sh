#!/bin/sh
# nodeagent probe startup|live|ready, for a pod's probes: a shell's own words and no other process,
# so that asking each few seconds costs nothing. Exit status 0 or 1; why not is said in a line.
#
#   startup  the agent has begun: from here on `live` watches over it, however long a build takes
#   live     it is ready (then it only waits for a signal), or it has given a sign of life lately
#   ready    the node is proven to be as it was
#
# An exec probe runs in the agent's own container: that there is one says that its process lives.
flag=${DRIVER_READY_PATH:-/run/mellanox/drivers/.driver-ready}
beat=${LOCK_FILE_PATH:-/run/mellanox/drivers/.lock}.beat
limit=${BEAT_LIMIT:-300}

case $# in 1) ;; *) set -- usage ;; esac
case $1 in
ready)
    [ -e "$flag" ] && exit 0
    echo "not ready: $flag is not there"
    exit 1
    ;;
startup | live) ;;
*)
    echo "usage: nodeagent probe startup|live|ready" >&2
    exit 64
    ;;
esac

[ ! -e "$flag" ] || exit 0
{ read -r now _ </proc/uptime && read -r last <"$beat"; } 2>/dev/null || last=none
case $last in
*[!0-9]* | '')
    echo "not ready, and no sign of life in $beat"
    exit 1
    ;;
esac
# Without leading zeros, which would make it octal, and without /proc/uptime's fraction.
while [ "${last#0}" != "$last" ]; do last=${last#0}; done
silent=$((${now%.*} - ${last:-0}))
if [ "$silent" -gt "${limit%.*}" ] || [ "$silent" -lt -1 ]; then
    echo "not ready, and no sign of life for $silent s, at most $limit are allowed: it hangs"
    exit 1
fi
