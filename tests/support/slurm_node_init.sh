#!/bin/bash
# PID 1 of a lab's node: own /run, /tmp and /dev/shm in memory, the lab's hosts file; then slurmd.
# Arguments: the node's name, the lab's folder, then all folders of the host that the node must see.
set -euo pipefail
node=$1 folder=$2
shift 2
private=(/tmp /dev/shm)

hostname "$node"
# The login node's /run is left, of which a node needs munged's socket alone.
mount --bind /run/munge /mnt
mount -t tmpfs -o mode=755 run /run
mkdir /run/munge /run/slurmd
mount --move /mnt /run/munge

# A shared folder may lie below a private place: the host's is kept aside, of which its shared parts are bound back.
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
rm -r /run/host
mount --bind "$folder/hosts" /etc/hosts

touch /run/lab_node
until [ -e /run/plugged_in ]; do sleep 0.01; done
while true; do
    if [ ! -e /run/slurmd_off ]; then
        # -D: in the foreground, where it says on stderr once more what its log tells.
        slurmd -D -N "$node" -L "$folder/slurmd-$node.log" 2>"$folder/slurmd-$node.stderr" &
        wait $! || true
    fi
    sleep 0.1
done
