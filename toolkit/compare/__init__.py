"""`vtk compare`: the same work under every technique, timed by the host, in one table.

    techniques.py    the table of techniques: how each is opened, and why it may be missing here
    session.py       what a technique opens: lines in, lines out, each with the time it came
    protocol.py      the bench guest's protocol on a session, and everything a guest can get wrong in it
    workloads.py     the workloads for people: what one operation is, and its name in the literature
    cell.py          one cell while it is measured: markers, calibration, samples, failure
    runner.py        the order of a comparison; a wrong checksum exposed
    statistics.py    median, spread, ratio
    results.py       the records, and their JSON (schema.json)
    quantity.py      numbers and units as people read them
    report.py        the table for a terminal
    charts.py        bars on a logarithmic axis, as SVG
    html.py          the report as one file

Each imports only from those above it, save that techniques.py, protocol.py and statistics.py stand side by side.
"""
