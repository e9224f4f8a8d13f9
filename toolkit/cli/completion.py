"""`vtk completion`: the script that makes a shell complete vtk's commands and options."""

from __future__ import annotations

import click


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of SHELL.

    \b
    bash:  eval "$(vtk completion bash)"        in ~/.bashrc
    zsh:   eval "$(vtk completion zsh)"         in ~/.zshrc
    fish:  vtk completion fish | source         in ~/.config/fish/config.fish
    """
    from click.shell_completion import get_completion_class

    from toolkit.cli import cli

    writer = get_completion_class(shell)
    assert writer is not None
    click.echo(writer(cli, {}, "vtk", "_VTK_COMPLETE").source())
