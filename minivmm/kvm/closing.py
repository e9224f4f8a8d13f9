"""Closing a VM without waiting for it.

The kernel frees a VM when its last descriptor is closed, inside close(2), and waits there for a grace period for each
device on the VM's buses: 15 ms for the interrupt controllers, 8 ms more for the timer (docs/backends.md). Nobody needs
to stand by: a thread does, and the grace periods of several VMs pass at the same time.
"""

from __future__ import annotations

import os
import threading

MAX_PENDING = 8
"""VMs being freed at once. The next one waits for a place, so that descriptors and kernel memory stay bounded."""

_places = threading.BoundedSemaphore(MAX_PENDING)
_threads: set[threading.Thread] = set()


def close_soon(fd: int) -> None:
    """Closes `fd` on a thread of its own. A process that exits meanwhile is gone when the kernel is done."""
    _places.acquire()
    thread = threading.Thread(target=_close, args=(fd,), name="closing", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # no thread to be had: the caller waits after all
        _close(fd)
        return
    for ended in [thread for thread in tuple(_threads) if not thread.is_alive()]:
        _threads.discard(ended)
    _threads.add(thread)


def _close(fd: int) -> None:
    try:
        os.close(fd)
    finally:
        _places.release()


def wait_until_closed() -> None:
    """Returns when every VM given to `close_soon` is freed, and its thread gone: for those who count either."""
    for thread in tuple(_threads):
        thread.join()
