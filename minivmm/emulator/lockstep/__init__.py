"""Two engines on one guest, in lock-step: what they do must be the same.

sides.py      what is compared: a hart, its output, its memory
pair.py       two of them driven to the same places, and what differs there
search.py     from "they differ by now" back to the first instruction after which they do
machine.py    a RISC-V machine twice
process.py    a Linux program twice: system calls are done once, and told to the other
"""
