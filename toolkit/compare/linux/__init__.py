"""`vtk compare --linux`: the same Linux and the same work, on emulated and on paravirtual hardware.

    hardware.py        the devices: what QEMU is told, and what Linux must find
    works.py           the tables, their columns and rows; how a figure is said
    results.py         the records, and their JSON (schema.json)
    accelerators.py    TCG and KVM, and why one of them may be missing here
    guest.py           the Linux: kernel, initramfs, command line
    identity.py        whether the guest really has the hardware: its sysfs against QMP
    machine.py         one QEMU machine with its devices and their peers
    memory.py          what a process costs the host
    devices.py         tables disk, net, console, clock: all in one machine
    kinds.py           process and machine, as what can be started several times over
    containers.py      containers, as the same
    starting.py        table machine: boot, memory, timers
    consolidation.py   table together: one, two, four at once
    runner.py          the order of it all
    report.py          the tables for a terminal
    html.py            the report as one file

Cells, sessions, the bench protocol, statistics and charts are those of `toolkit.compare`.
"""
