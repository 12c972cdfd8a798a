#!/bin/bash
# First process of a host that has the Linux NFS client: root is this machine's, read-only; the rest is its own.
# From the kernel's command line: HOST, SHARE_IP, CONTROL_IP, SERVER, NFS_OPTIONS, HERE (folder of this file), OUT.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/run TMPDIR=/run
mount -t proc proc /proc
mount -t sysfs sysfs /sys
for folder in /run /mnt /var/lib/nfs /dev/shm; do mount -t tmpfs tmpfs $folder; done
hostname "$HOST"
modules=/usr/lib/uml/modules/$(uname -r)
# insmod with dependencies: modprobe looks in /lib/modules, which is the other kernel's.
insert() {
  local line module
  line=$(grep -m1 -E "/$1.ko:" "$modules/modules.dep") || return
  for module in $(printf '%s\n' ${line#*:} | tac) "${line%%:*}"; do
    [ -d "/sys/module/$(basename "$module" .ko | tr - _)" ] || insmod "$modules/$module"
  done
}
insert nfsv4
ip link set lo up
ip addr add "$SHARE_IP/24" dev vec0 && ip link set vec0 up
ip addr add "$CONTROL_IP/24" dev vec1 && ip link set vec1 up
mkdir -p /mnt/share /mnt/out
mount -t hostfs -o "$OUT" none /mnt/out || exit
mount -t nfs4 -o "$NFS_OPTIONS" "$SERVER:/exported" /mnt/share || exit
exec /usr/bin/python3 "$HERE/agent.py" "$CONTROL_IP:9000"
