"""Machines that stay: made, started, reached and deleted by name, on a provider (`provider.Provider`).

Everything vtk knows of a machine is in its directory (`directory`); what it is doing, the provider is asked each time.
"""

PROVIDERS = {
    "qemu": "toolkit.vm.qemu:QemuProvider",
    "libvirt": "toolkit.libvirt.provider:LibvirtProvider",
    "minivmm": "toolkit.vm.minivmm:MinivmmProvider",
}
"""Where each provider is; loaded when a machine of it is met."""
