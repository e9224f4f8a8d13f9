"""The tests that need KVM, run on an ordinary hardware-style KVM that any x86-64 machine can have.

QEMU's TCG emulates an AMD processor with SVM; Debian's kernel with kvm-amd offers /dev/kvm on it; the host's own
root file system, shared read-only by virtio-9p below an overlay in memory, makes this checkout and its .venv run
there unchanged. `python -m tests.svm` (make test-svm); docs/backends.md tells what differs between back ends.
"""
