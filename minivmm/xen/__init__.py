"""Domains under the Xen PV x86-64 ABI: the guest's kernel at ring 3, its page tables checked, the rest by hypercall.

    machine.py       a domain as a machine        hypervisor.py   domains on one machine, and their lives
    processor.py     a vCPU's loop                core.py         what all domains share, and the lock around it
    domain.py, vcpu.py   what is known of one     crash.py        what a person wants to see of its end
    faults.py        what an exception means      traps.py        into the kernel's handlers, and iret
    privileged.py, table_store.py, msr.py, cpuid.py, pit.py       instructions carried out for a kernel
    calls/           every hypercall, in one table                guest_pointer.py   a domain's addresses
    mailbox.py, exitless.py, hypercall_page.py    ways to make one
    builder.py       a domain's memory at its start
    frame_owners.py  whose each machine frame is   frames.py   what it is used as, and how often
    page_tables.py   changing what maps what
    recount.py       the same counts from the page tables themselves, for debug runs
    memory.py        reservations                 events.py       event channels
    grants.py, grant_table.py, grant_frames.py    frames lent to another domain
    timers.py, clock.py  when, and what time it is
    console.py, store.py, store_ring.py, store_domains.py         the console and xenstore rings
    atomic.py        locked instructions on words a guest also changes
    abi.py, hypercall_abi.py, memory_abi.py, event_abi.py, grant_abi.py, platform_abi.py   Xen's public headers

docs/xen.md is the way in.
"""
