"""Devices of the PC that are not virtio: one file each, told offsets, never addresses."""
