#!/bin/bash
# PID 1 of a lab's login node: the network that the nodes are plugged into, munged and slurmctld.
# Its end is the end of everything in the lab: nodes are started in its pid namespace.
set -euo pipefail
folder=$1

hostname login
mount -t tmpfs -o mode=755 run /run
mkdir /run/munge
dd if=/dev/urandom of=/run/munge/key bs=128 count=1 status=none
chmod 400 /run/munge/key

ip link set lo up
ip link add lan type bridge
ip address add 10.77.0.1/24 dev lan
ip address add fd77::1/64 dev lan nodad
ip link set lan up

munged --force --socket=/run/munge/munge.socket.2 --key-file=/run/munge/key \
    --log-file=/run/munge/log --pid-file=/run/munge/pid --seed-file=/run/munge/seed
trap 'exit 0' TERM
while true; do
    # Restarted when a test has stopped it and removes the mark; -D: its end is seen here.
    if [ ! -e "$folder/controller_off" ]; then
        slurmctld -D 2>>"$folder/slurmctld.stderr" &
        wait $! || true
    fi
    sleep 0.1
done
