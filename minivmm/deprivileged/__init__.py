"""A guest kernel outside ring 0: it runs at ring 3 of a KVM machine, and its traps are reflected to Python.

This is the substrate of trap-and-emulate, binary translation and Xen's paravirtual domains, and knows none of them.

monitor.py  what ring 0 consists of: descriptor tables, stub, and their place in every address space
stub.py     the stub's instructions      events.py  why ring 3 was left
cpu.py      a vCPU that runs ring-3 code and comes back with an event
walk.py     reading memory as ring 3 sees it       decode.py  `int n`       stopped.py  KVM's reasons
"""
