"""`vtk metrics`: the figures of all machines for Prometheus."""

from __future__ import annotations

import click


@click.command()
@click.option(
    "--listen",
    metavar="HOST:PORT",
    default="127.0.0.1:9177",
    show_default=True,
    help="Where to answer. Anybody who can reach it may read: there is no password.",
)
@click.option("--once", is_flag=True, help="Print the figures as they are now, and end.")
def metrics(listen: str, once: bool) -> None:
    """Answer GET /metrics with the figures of all machines, until Ctrl-C.

    The format is Prometheus' text format 0.0.4.

    \b
    Examples:
      vtk metrics                          to be scraped from this host
      vtk metrics --listen 0.0.0.0:9177    from anywhere
      vtk metrics --once > vtk.prom        for node_exporter's textfile collector
    """
    from toolkit.cli.vm.asked import machines
    from toolkit.vm.exposition import exposition, parsed_address, server
    from toolkit.vm.figures import read_all

    address = parsed_address(listen)
    found = machines()
    if once:
        click.echo(exposition(read_all(found)), nl=False)
        return
    with server(address, lambda: read_all(found)) as http:
        host, port = http.server_address[:2]
        shown = f"[{host!s}]" if ":" in str(host) else str(host)
        click.echo(f"vtk: http://{shown}:{port}/metrics (Ctrl-C ends)", err=True)
        http.serve_forever()
