# /init of the emulated-SVM machine, after the modules are loaded (toolkit/images/initramfs.py; busybox sh).
# The host's root, read-only, below an overlay in memory: what the tests write stays in this machine.
# cache=loose: nobody else writes to these files meanwhile, and the alternatives read every file again.
mkdir /lower /upper /root_fs
mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=262144,cache=loose root /lower &&
    mount -t tmpfs -o mode=755 upper /upper &&
    mkdir /upper/changes /upper/work &&
    mount -t overlay -o lowerdir=/lower,upperdir=/upper/changes,workdir=/upper/work overlay /root_fs ||
    poweroff -f
# Not over /tmp: the checkout may be there, and the overlay keeps what is written to it in memory as well.
mount -t tmpfs -o mode=755 tmpfs /root_fs/run
mount -o bind /dev /root_fs/dev
mkdir -p /root_fs/dev/pts /root_fs/dev/shm
mount -t devpts devpts /root_fs/dev/pts
mount -t tmpfs -o mode=1777 tmpfs /root_fs/dev/shm
mount -o bind /proc /root_fs/proc
mount -o bind /sys /root_fs/sys
# Where results leave the machine: a directory of the host's, writable.
mkdir /root_fs/run/results
mount -t 9p -o trans=virtio,version=9p2000.L,cache=none results /root_fs/run/results || poweroff -f
ifconfig lo 127.0.0.1 up
chroot /root_fs /bin/sh /run/results/run.sh
echo $? >/root_fs/run/results/status
sync
poweroff -f
