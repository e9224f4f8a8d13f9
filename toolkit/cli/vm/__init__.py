"""`vtk vm`: machines that stay, by name. What each verb does is `toolkit.vm.machine`; here it is asked for and told."""

from __future__ import annotations

from typing import Any

import click

from toolkit.cli import ExitStatus
from toolkit.cli.vm.copied import cp
from toolkit.cli.vm.figures import top
from toolkit.cli.vm.live import balloon, migrate, restore, snapshot
from toolkit.cli.vm.lives import create, delete, import_machine, kill, pause, resume, start, stop
from toolkit.cli.vm.looks import list_machines, logs, show, wait
from toolkit.cli.vm.reached import console, execute, ssh, ssh_config

EPILOG = """\b
Examples:
  vtk vm create web --image debian --mem 1G
  vtk vm create tiny --kernel vmlinuz --initrd initrd.cpio --append "console=ttyS0"
  vtk vm start web && vtk vm wait web --for ssh --timeout 120
  vtk vm exec web -- uname -a
  vtk vm ssh web                   ~. leaves it
  vtk vm cp -r src web:/srv
  vtk vm console web               Ctrl-] then q leaves it
  vtk vm list --json
  vtk vm stop web || vtk vm kill web

\b
Exit status: 0 success, 1 what was waited for did not come, 2 wrong usage, name
or state, 3 the host cannot do it. `ssh` and `exec` give their command's, 255
for a machine that is not reached and for a command that a signal ended.
"""


class VmGroup(click.Group):
    """Its verbs, in the order they are written in."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """In the order of definition."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        """A wait in vain is a failure of the work, not of its command line."""
        from toolkit.vm.errors import Unfinished

        try:
            return super().invoke(ctx)
        except Unfinished as error:
            click.echo(f"vtk: {error}", err=True)
            return ExitStatus.FAILED


@click.group(cls=VmGroup, epilog=EPILOG)
def vm() -> None:
    """Virtual machines that stay: made, started and reached by name.

    Each is a QEMU process of yours, without root and without a daemon; or a
    domain of libvirt's, or a machine of minivmm's (create --provider).
    """


for verb in (
    create,
    import_machine,
    start,
    stop,
    kill,
    list_machines,
    show,
    console,
    ssh,
    execute,
    cp,
    ssh_config,
    pause,
    resume,
    snapshot,
    restore,
    balloon,
    migrate,
    top,
    wait,
    logs,
    delete,
):
    vm.add_command(verb)
