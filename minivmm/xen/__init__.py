"""Domains under the Xen PV x86-64 ABI: the guest's kernel at ring 3, its page tables checked, the rest by hypercall.

    hypervisor.py    the machine, and a domain's life on it          domain.py  what is known of one
    hypercalls.py    every call answered, in one table               guest_pointer.py  a domain's addresses
    traps.py         exceptions to the domain's handlers, and iret
    builder.py       a domain's memory at its start
    frames.py        every machine frame's owner, type and counts    page_tables.py  changing what maps what
    recount.py       the same counts from the page tables themselves, for debug runs
    events.py        event channels        grants.py, grant_table.py   frames lent to another domain
    atomic.py        locked instructions on words a guest also changes
    abi.py, hypercall_abi.py, memory_abi.py, event_abi.py, grant_abi.py   Xen's public headers, under their own names

Not joined yet: events and grants to the hypercall table, user code's system calls, emulated instructions, time, several
vCPUs.
"""
