"""Virtio 1.2 devices over virtio-mmio: everything between a guest's descriptor and the host's file or callable.

Read in this order:

    device.py    what a device is: type, queues, features, configuration; and Chain, one request of the driver
    queue.py     the split virtqueue seen from the device: copies descriptors once, checks them, hands out Chains
    mmio.py      the registers of the virtio-mmio transport, version 2: status, feature negotiation, notifications
    entropy.py   virtio-rng
    console.py   virtio-console, one port
    block.py     virtio-blk on a raw file
    driver.py    a mock driver: drives any of these through registers and guest memory, without a VM

A device knows neither its transport nor KVM; the transport knows nothing of the device but its VirtioDevice face.
Whatever a driver does wrong raises GuestError below mmio.py and is answered there, in one place, with
DEVICE_NEEDS_RESET. Nothing is imported here: import the module that has what is needed.
"""
