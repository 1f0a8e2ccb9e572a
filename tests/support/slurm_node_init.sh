#!/bin/bash
# PID 1 of a lab's node: own /run, /tmp and /dev/shm in memory, own hosts file; then slurmd.
# Arguments: the node's name, the lab's folder, then the folders that nodes share with the host.
set -euo pipefail
node=$1 folder=$2
shift 2
private=(/tmp /dev/shm)

hostname "$node"
# A shared folder may lie below a private one: the host's are kept aside and the shared parts bound back.
mount --bind /run/munge /mnt
mount -t tmpfs -o mode=755 run /run
mkdir -p /run/munge /run/slurmd
mount --move /mnt /run/munge
for place in "${private[@]}"; do
    mkdir -p "/run/host$place"
    mount --rbind "$place" "/run/host$place"
    mount -t tmpfs -o mode=1777,size=8g "$node" "$place"
    for path in "$@"; do
        if [[ $path == "$place"/* ]]; then
            mkdir -p "$path"
            mount --rbind "/run/host$path" "$path"
        fi
    done
    umount -l "/run/host$place"
done
mount --bind "$folder/hosts" /etc/hosts

until [ -e /run/plugged_in ]; do sleep 0.01; done
trap 'exit 0' TERM
while true; do
    if [ ! -e /run/slurmd_off ]; then
        slurmd -D -N "$node" -L "$folder/slurmd-$node.log" 2>>"$folder/slurmd-$node.stderr" &
        wait $! || true
    fi
    sleep 0.1
done
