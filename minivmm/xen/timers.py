"""Calls at points of system time: a domain's timers, its poll time-outs, and the end of the time it was given.

One thread for all of them. It sleeps until the earliest, and takes the hypervisor's lock only to call.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable, Hashable

SPARE = 64  # entries in the heap that mean nothing any more
IDLE = 3600.0  # seconds: nothing is due


class Timers:
    """Everything but the thread itself is called with `lock` held. `now` is system time in nanoseconds."""

    def __init__(self, lock: threading.RLock, now: Callable[[], int]) -> None:
        self._now = now
        self._due: dict[Hashable, tuple[int, Callable[[], None]]] = {}
        self._heap: list[tuple[int, int, Hashable]] = []  # may hold what was cancelled or set anew since
        self._order = itertools.count()
        self._changed = threading.Condition(lock)
        self._sleeps_until = 0
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="xen-timers", daemon=True)
        self._thread.start()

    def set(self, key: Hashable, when: int, callback: Callable[[], None]) -> None:
        """Has `callback` called at `when`, under the lock. A key has one time: this one."""
        self._due[key] = when, callback
        if len(self._heap) > 2 * len(self._due) + SPARE:  # a guest may set one anew for ever
            self._heap = [(when, next(self._order), key) for key, (when, _) in self._due.items()]
            heapq.heapify(self._heap)
        else:
            heapq.heappush(self._heap, (when, next(self._order), key))
        if when < self._sleeps_until:
            self._changed.notify()

    def cancel(self, key: Hashable) -> None:
        """Nothing happens when there is none."""
        self._due.pop(key, None)

    def close(self) -> None:
        """Ends the thread. Not with the lock held."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        with self._changed:
            while not self._closed:
                wait = self._call_due()
                self._sleeps_until = self._heap[0][0] if self._heap else 1 << 63
                self._changed.wait(wait)

    def _call_due(self) -> float:
        """Calls what is due. Returns the seconds until the next."""
        while self._heap:
            when, _, key = self._heap[0]
            entry = self._due.get(key)
            if entry is None or entry[0] != when:
                heapq.heappop(self._heap)
                continue
            left = when - self._now()
            if left > 0:
                return min(left / 1e9, IDLE)
            heapq.heappop(self._heap)
            del self._due[key]
            entry[1]()
        return IDLE
