"""A RISC-V machine twice, interpreted and translated: same image, same input, the clock that counts instructions."""

from __future__ import annotations

import contextlib
import random
import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from minivmm.emulator.lockstep.pair import IDLE, Pair
from minivmm.emulator.lockstep.search import Lockstep, Mismatch
from minivmm.emulator.lockstep.sides import Digest, Piece, ram_pieces
from minivmm.emulator.machine import INSTRUCTIONS, INTERPRET, TRANSLATE, RiscvMachine
from minivmm.emulator.traps import Access, Trap
from minivmm.errors import ConfigError, GuestMemoryError
from minivmm.life import Life
from minivmm.outcome import EndOfRun, Outcome
from minivmm.virtio.block import Disk

STRIDE = 10_000
"""Instructions between two looks at interrupts."""
SEED = 5  # of the entropy device: both get the same bytes
ENGINES = (INTERPRET, TRANSLATE)


class MachineSide:
    """One of the two machines, with what it put out."""

    def __init__(self, machine: RiscvMachine, digest: Digest, name: str) -> None:
        self.name = name
        self.machine = machine
        self.hart = machine.hart
        self._digest = digest

    def look(self) -> bool:
        """As Side's."""
        self.machine.execute_here()
        return self.hart.look_at_interrupts()

    def idle(self, longest: float) -> None:
        """As Side's."""
        self.machine.idle(longest)

    def output(self) -> tuple[int, bytes]:
        """As Side's."""
        return self._digest.value()

    def memory(self) -> dict[int, Piece]:
        """As Side's: RAM, by physical address."""
        return ram_pieces(self.machine.memory)

    def read(self, address: int, size: int) -> bytes:
        """As Side's."""
        return self.machine.memory.read(address, size)

    def fetch(self, address: int, mode: int) -> int:
        """As Side's."""
        try:
            physical = self.hart.mmu.translate(address, Access.FETCH, mode)
            return int.from_bytes(self.machine.memory.read(physical, 4), "little")
        except (Trap, GuestMemoryError):
            return 0

    def send(self, data: bytes) -> None:
        """As Side's."""
        self.machine.send(data)

    def close(self) -> None:
        """As Side's."""
        self.machine.close()


class LockstepMachine(Life):
    """The verbs of a machine; it ends as DIVERGED when the two engines do not do the same, and says where.

    Parameters as of RiscvMachine. What the guest writes to a disk goes to a copy, and is gone at the end. The entropy
    device gives the same bytes in every run. stride: instructions after which interrupts are looked at and the two
    compared, if they have not been before.
    """

    def __init__(
        self,
        image: str | Path,
        *,
        memory: int = 64 << 20,
        cmdline: str = "",
        disks: Sequence[Disk] = (),
        console: Callable[[bytes], None] | None = None,
        virtio_console: bool = False,
        rng: bool = False,
        stride: int = STRIDE,
    ) -> None:
        if stride < 1:
            raise ConfigError(f"a stride of {stride} instructions cannot be", cause="the least is 1: every block")
        super().__init__(console)
        self._image, self._memory, self._cmdline, self._disks = image, memory, cmdline, tuple(disks)
        self._virtio_console, self._rng, self._stride = virtio_console, rng, stride
        self._typed = bytearray()
        self._typed_lock = threading.Lock()
        self._given: dict[int, bytes] = {}  # input, by the look at which it was handed over
        self._mismatch: Mismatch | None = None
        pair = self._make(False)
        self._release.callback(pair.close)
        self._lockstep = Lockstep(self._make, pair)
        self._thread = threading.Thread(target=self._to_the_end, args=(self._execute,), name="lockstep", daemon=True)

    # --- the two machines --------------------------------------------------------------------------------------------
    def _make(self, again: bool) -> Pair:
        sides = []
        with contextlib.ExitStack() as undo:
            for accelerator in ENGINES:
                side = self._side(accelerator, shown=not again and accelerator == INTERPRET)
                undo.callback(side.close)
                sides.append(side)
            undo.pop_all()
        take = self._given_before if again else self._take_input
        return Pair(sides[0], sides[1], self._stride, take, 0.0 if again else IDLE)

    def _side(self, accelerator: str, *, shown: bool) -> MachineSide:
        digest = Digest()

        def put_out(data: bytes) -> None:
            digest.add(data)
            if shown:
                self._console_output(data)

        with tempfile.TemporaryDirectory(prefix="vtk-lockstep-") as copies:  # a disk that is open outlives its name
            machine = RiscvMachine(
                self._image,
                memory=self._memory,
                cmdline=self._cmdline,
                disks=[_own(disk, Path(copies, str(index))) for index, disk in enumerate(self._disks)],
                console=put_out,
                virtio_console=self._virtio_console,
                rng=self._rng,
                entropy=random.Random(SEED).randbytes,
                clock=INSTRUCTIONS,
                accelerator=accelerator,
            )
        return MachineSide(machine, digest, accelerator)

    # --- input -------------------------------------------------------------------------------------------------------
    def send(self, data: bytes) -> None:
        """Bytes for the guest's serial port. Thread-safe. See `pending_input` for how many it has not read yet."""
        with self._typed_lock:
            self._typed += data

    @property
    def pending_input(self) -> int:
        """Bytes sent to the serial port that the guest has not read yet."""
        first = self._lockstep.pair.sides[0]
        assert isinstance(first, MachineSide)
        return len(self._typed) + first.machine.pending_input

    def _take_input(self, look: int) -> bytes:
        with self._typed_lock:
            data = bytes(self._typed)
            self._typed.clear()
        if data:
            self._given[look] = data
        return data

    def _given_before(self, look: int) -> bytes:
        return self._given.get(look, b"")

    # --- life --------------------------------------------------------------------------------------------------------
    def _begin(self) -> None:
        self._thread.start()

    def _halt(self) -> None:
        self._thread.join()
        if self._mismatch is not None:  # found before the deadline, looked at more closely until then
            self._end = EndOfRun(Outcome.DIVERGED, self._mismatch.detail)

    def _execute(self) -> None:
        found = self._lockstep.run(lambda: not self._ended.is_set())
        if isinstance(found, Mismatch):
            self._mismatch = found
            self._note_end(EndOfRun(Outcome.DIVERGED, found.detail))
        elif found is not None:
            self._note_end(found)

    @property
    def exits(self) -> dict[str, int]:
        """What was executed and how often it was compared."""
        hart = self._lockstep.pair.sides[0].hart
        return {"instructions": hart.retired, "traps": hart.traps} | self._lockstep.figures

    @property
    def mismatch(self) -> Mismatch | None:
        """Where the two differ, when they do."""
        return self._mismatch

    def kernel_stats(self) -> dict[str, int]:
        """Of the host's kernel: it knows nothing of these machines."""
        return {}

    def _dump(self) -> str:
        return self._mismatch.dump if self._mismatch is not None else ""


def _own(disk: Disk, copy: Path) -> Disk:
    """The disk itself when it is only read; else a copy, as it is now. Raises ConfigError."""
    if disk.read_only:
        return disk
    try:
        shutil.copyfile(disk.path, copy)
    except OSError as error:
        raise ConfigError(f"{disk.path} cannot be copied", cause=error.strerror or str(error)) from error
    return Disk(copy)
