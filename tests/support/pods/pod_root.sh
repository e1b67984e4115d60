# Process 1 of a pod: makes its root, gives all rights away, and becomes what the pod runs.
# Arguments: a file of shell variables, then `NAME=VALUE` of its environment and the command.
set -eu
. "$1"; shift
mount --make-rprivate /
mount -t tmpfs -o mode=755,size=1m root "$pod_root"
cd "$pod_root"
mkdir -p usr proc sys dev etc tmp opt root run var/tmp .old
for link in bin lib lib64 sbin; do ln -s "usr/$link" "$link"; done
mount --rbind /usr usr; mount -o remount,bind,ro usr
for file in ld.so.cache ld.so.conf ld.so.conf.d ssl alternatives localtime; do
  if [ -e "/etc/$file" ]; then cp -a "/etc/$file" etc/ 2>/dev/null || true; fi
done
cp "$pod_hosts" etc/hosts
echo "hosts: files" > etc/nsswitch.conf
: > etc/resolv.conf
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t tmpfs -o mode=755,size=64k dev dev
for device in null zero full random urandom tty; do : > dev/$device; mount --bind /dev/$device dev/$device; done
mkdir dev/shm; mount -t tmpfs -o mode=1777,size=64m shm dev/shm
ln -s /proc/self/fd dev/fd
while read -r mode from to; do
  [ -n "$to" ] || continue
  if [ -d "$from" ]; then mkdir -p ".$to"; else mkdir -p "$(dirname ".$to")"; : > ".$to"; fi
  mount --bind "$from" ".$to"
  [ "$mode" = rw ] || mount -o remount,bind,ro ".$to"
done < "$pod_mounts"
hostname "$pod_name"
chmod 755 root
if [ "$pod_read_only" = 1 ]; then mount -o remount,ro "$pod_root"; fi
pivot_root . .old
umount -l /.old
cd "$pod_workdir"
exec /usr/bin/env -i "$@"
