"""`vtk lab`: each idea of virtualization as a claim, an experiment and a verdict that can fail.

    verdict.py     what an experiment ends in: statements that hold or do not, tables, notes
    registry.py    `@lab(...)`, and the table of labs
    host.py        what an experiment may use
    trace.py       who was on the CPU, in order, and why each left it
    domains.py     a domain of an experiment: what it says, what it is told
    run.py         one lab run to its result; its JSON
    report.py      a result for a terminal
    hypercalls.py direct_paging.py event_channels.py interrupt_path.py     the labs

A lab never depends on how long something takes: times are shown, and no verdict looks at them.
"""
