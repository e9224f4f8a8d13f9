"""A running machine answers to other programs, by the QEMU Machine Protocol (QEMU, docs/interop/qmp-spec).

    messages.py     bytes to requests, errors and events to bytes     commands.py   every command, in one table
    server.py       connections                                       controlled.py a machine paused, reset and ended

docs/vm-minivmm.md tells which commands there are.
"""
