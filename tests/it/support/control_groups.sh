#!/bin/bash
# Runs as the first process of a User-Mode Linux that has the machine's files: a real kernel with real control groups,
# whatever the machine itself has. Writes what it found below $1; $2 is the binary of the tests.
results=$1 binary=$2
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sys /sys
# Everything that changes is in memory: the machine's files are to stay as they are.
mount -t tmpfs tmp /mnt
cd /mnt || exit
cp "$results/callsheet.toml" .
"$binary" check >"$results/without" 2>&1
echo $? >"$results/without.code"
"$binary" serve >"$results/serve-without" 2>&1
echo $? >"$results/serve-without.code"
mount -t cgroup2 groups /sys/fs/cgroup
cat /sys/fs/cgroup/cgroup.controllers >"$results/controllers"
# As in a unit with Delegate=yes: a group of its own, with all controllers.
for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control; done
mkdir /sys/fs/cgroup/unit
one_round() {
  "$binary" check >"$results/$1.check" 2>&1
  echo $? >"$results/$1.check.code"
  "$binary" serve >"$results/$1.serve" 2>&1 &
  service=$!
  for _ in $(seq 600); do grep -q 'is ready' "$results/$1.serve" && break; sleep 0.1; done
  cat "/proc/$service/cgroup" >"$results/$1.group"
  for flow in MEMORY PIDS CPU TREE FREE HUNGRY; do
    "$binary" enqueue "$flow" a --wait --json >"$results/$1.$flow.wait" 2>&1
  done
  for job in 1 2 3 4 5 6; do "$binary" show "$job" --json >"$results/$1.$job.json"; done
  kill "$service"
  wait "$service"
  find /sys/fs/cgroup -type d -path '*callsheet-*' >"$results/$1.left"
  rm -rf callsheet-data
}
one_round root
(echo 0 >/sys/fs/cgroup/unit/cgroup.procs && one_round unit)
echo done >"$results/done"
sync
echo o >/proc/sysrq-trigger
sleep 10
