"""python -m tests.svm [--smoke] [--timeout SECONDS] [pytest arguments]

Runs the tests marked `kvm`, but not those marked `slow` or `qemu` (a QEMU inside the emulated machine takes minutes a
test), on an emulated AMD machine; with --smoke those marked `svm_smoke`. An -m of your own selects others.

Exit status: pytest's own (0 all passed, 1 a test failed, 5 none was run), 70 when the machine died or passed its
deadline, 71 when this host cannot have such a machine, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

import guest_os
from minivmm.errors import HostError, ImageError
from tests.svm import machine

DIRECTORY = machine.CHECKOUT / "build" / "svm"
SMOKE_TIMEOUT = 600.0  # seconds; it takes about half of that
FULL_TIMEOUT = 5400.0
STATUS_DIED = 70
STATUS_UNSUPPORTED = 71
STATUS_INTERRUPTED = 130


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.svm", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="only the tests marked svm_smoke")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="end the machine after this time")
    options, pytest_arguments = parser.parse_known_args(arguments)
    timeout = options.timeout or (SMOKE_TIMEOUT if options.smoke else FULL_TIMEOUT)
    expression = "svm_smoke" if options.smoke else "kvm and not slow and not qemu"

    DIRECTORY.mkdir(parents=True, exist_ok=True)
    report = DIRECTORY / "junit.xml"
    # A directory of its own: two runs may be under way at once.
    own = Path(tempfile.mkdtemp(dir=DIRECTORY, prefix="run-"))
    try:
        # Compiled here: the emulated machine is some twenty times slower.
        prebuild_guests()
        if not any(Path(argument.split("::")[0]).exists() for argument in pytest_arguments):
            pytest_arguments += files_with_marker("svm_smoke" if options.smoke else "kvm")
        command = pytest_command(expression, pytest_arguments)
        status = machine.run(command, own, machine.Limits(timeout), sys.stdout)
        with contextlib.suppress(FileNotFoundError):
            (own / "results" / "junit.xml").replace(report)
    except machine.MachineDied as error:
        print(f"\n{error}", file=sys.stderr)
        return STATUS_DIED
    except (HostError, ImageError) as error:
        print(f"unsupported: no emulated SVM machine on this host: {error}", file=sys.stderr)
        return STATUS_UNSUPPORTED
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return STATUS_INTERRUPTED
    finally:
        shutil.rmtree(own, ignore_errors=True)
    print(f"report: {report.relative_to(Path.cwd()) if report.is_relative_to(Path.cwd()) else report}")
    return status


def files_with_marker(marker: str) -> list[str]:
    """The test files that name pytest's `marker`: to import all others there, only to deselect them, takes a minute."""
    files = (machine.CHECKOUT / "tests").rglob("test_*.py")
    return sorted(str(file.relative_to(machine.CHECKOUT)) for file in files if f"mark.{marker}" in file.read_text())


def prebuild_guests() -> None:
    for guest in guest_os.guests().values():
        for platform in guest.platforms:
            guest_os.image(guest.name, platform)
    guest_os.native()


def pytest_command(expression: str, extra: list[str]) -> list[str]:
    return [
        *(sys.executable, "-u", "-m", "pytest", "-v", "-m", expression, "--require-kvm"),
        *("--junit-xml", "/run/results/junit.xml", "--color", "yes" if sys.stdout.isatty() else "no"),
        # What writes, or costs seconds of start-up there, and adds nothing to this run.
        *("-p", "no:cacheprovider", "-p", "no:hypothesispytest"),
        *("-o", "faulthandler_timeout=600", *extra),
    ]


if __name__ == "__main__":
    os.chdir(machine.CHECKOUT)
    sys.exit(main(sys.argv[1:]))
