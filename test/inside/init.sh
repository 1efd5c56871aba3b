#!/bin/busybox sh
# The first program of the machine, in the initial RAM file system.
set -e
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t devtmpfs dev /dev
while read -r m; do $b insmod "$m"; done </modules.list
$b mount -t erofs -o ro /dev/vda /root
$b mount --move /dev /root/dev
$b umount /proc
exec $b switch_root /root /bin/busybox sh /axo/jobs.sh
