# Runs in the machine's root: mounts what a host has, then runs each test
# program of /axo/tests, and tells the port how it went.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
b=/bin/busybox
fail() {
	echo "axo-failed $1" >/dev/vport0p1
	$b poweroff -f
}
$b mount -t proc -o nosuid,nodev,noexec proc /proc || fail proc
$b mount -t sysfs -o nosuid,nodev,noexec sys /sys || fail sys
$b mount -t cgroup2 -o nosuid,nodev,noexec,nsdelegate cgroup2 /sys/fs/cgroup || fail cgroup2
$b mount -t tracefs tracefs /sys/kernel/tracing || fail tracefs
$b mkdir /dev/pts /dev/shm || fail dev
$b mount -t devpts -o ptmxmode=0666 devpts /dev/pts || fail devpts
$b mount -t ext4 /dev/vdb /tmp && $b chmod 1777 /tmp || fail ext4
for d in /run /var/tmp /root /dev/shm; do
	$b mount -t tmpfs -o mode=1777 tmpfs $d || fail $d
done
$b ip link set lo up || fail lo
# As a service manager does: programs are not in the root group.
$b mkdir /sys/fs/cgroup/axo.slice /sys/fs/cgroup/axo.slice/tests.service || fail group
for c in $($b cat /sys/fs/cgroup/cgroup.controllers); do
	for g in /sys/fs/cgroup /sys/fs/cgroup/axo.slice; do
		echo "+$c" >$g/cgroup.subtree_control || fail "controller $c"
	done
done
echo $$ >/sys/fs/cgroup/axo.slice/tests.service/cgroup.procs || fail join
echo "axo-host $($b uname -r), controllers: $($b cat /sys/fs/cgroup/axo.slice/tests.service/cgroup.controllers)" >/dev/vport0p1
export HOME=/root TMPDIR=/tmp AXO_REQUIRE=1 AXO_TEST_PROGRAMS=/axo/programs AXO_TEST_PATIENCE=90s TIMEOUT=6m
set -a
. /axo/env
set +a
[ ! -e /dev/kvm ] || $b chmod 666 /dev/kvm
while read -r name run; do
	echo "axo-start $name" >/dev/vport0p1
	cd "/axo/dirs/$name" || fail "$name"
	"/axo/tests/$name" -test.v -test.short -test.timeout="$TIMEOUT" $run >/dev/vport0p1 2>&1 </dev/null
	echo "axo-exit $name $?" >/dev/vport0p1
done </axo/list
echo axo-done >/dev/vport0p1
$b sync
$b poweroff -f
