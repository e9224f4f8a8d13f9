"""`vtk compare`: the same work under every technique, timed by the host, side by side.

    session.py       what a technique opens: lines in, lines out, each with the time it came
    protocol.py      the bench guest's protocol on a session, and everything a guest can get wrong in it
    workloads.py     the workloads for people: what one operation is, and its name in the literature
    statistics.py    median, spread, ratio
    results.py       the records, and their JSON (schema.json)
    containers.py    one program alone in a container, on the engine that answers
    wasm_host.py     a process that runs a WebAssembly module; imports nothing of ours
    techniques/      the table of techniques: how each is opened, and why it may be missing here
    cell.py          one cell while it is measured: markers, calibration, samples, failure
    runner.py        the order of a comparison; a wrong checksum exposed
    quantity.py      numbers and units as people read them
    report.py        the tables for a terminal
    charts.py        bars on a logarithmic axis, as SVG
    html.py          the report as one file

Each imports only from those above it.
"""
