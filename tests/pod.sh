# A pod's container, as far as the kernel is concerned: PID 1 of its own, the root read-only, scratch in
# memory, no network, no capability, no way to gain any.
# Usage: unshare --mount --pid --net --ipc --uts --fork sh pod.sh ROOT RUNS TERMINATION_LOG word...
set -eu
root=$1 runs=$2 log=$3
shift 3
mount --make-rprivate /
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t tmpfs -o size=1m tmpfs "$root/dev"
for name in null zero full random urandom; do
    touch "$root/dev/$name"
    mount --bind "/dev/$name" "$root/dev/$name"
done
touch "$root/dev/termination-log"
mount --bind "$log" "$root/dev/termination-log"
mount -t tmpfs -o size=512m,mode=1777 tmpfs "$root/tmp"
mount --bind "$runs" "$root/runs"
mount -o remount,bind,ro "$root"
exec chroot "$root" setpriv --reuid 10001 --regid 10001 --clear-groups --no-new-privs \
    --bounding-set=-all env -i "$@"
