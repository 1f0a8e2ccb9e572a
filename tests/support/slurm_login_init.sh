#!/bin/bash
# PID 1 of a lab's login node: the network that the nodes are plugged into, munged and slurmctld.
# Nodes are started in its pid namespace: its end is the end of everything in the lab.
set -euo pipefail
folder=$1

hostname login
mount -t tmpfs -o mode=755 run /run
mount --bind "$folder/hosts" /etc/hosts

ip link set lo up
ip link add lan type bridge
ip address add 10.77.0.1/24 dev lan
ip address add fd77::1/64 dev lan nodad
ip link set lan up

mkdir /run/munge
dd if=/dev/urandom of=/run/munge/key bs=128 count=1 status=none
chmod 400 /run/munge/key
munged --force --socket=/run/munge/munge.socket.2 --key-file=/run/munge/key \
    --log-file=/run/munge/log --pid-file=/run/munge/pid --seed-file=/run/munge/seed

while true; do
    if [ ! -e "$folder/controller_off" ]; then
        # -D: in the foreground, where it says on stderr once more what its log tells.
        slurmctld -D 2>"$folder/slurmctld.stderr" &
        wait $! || true
    fi
    sleep 0.1
done
