"""Virtio devices, driven through registers and guest memory by the mock driver: no test here needs a VM."""
