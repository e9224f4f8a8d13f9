"""Machines of libvirt: domains of a daemon on this host or another, by the same verbs as every machine.

The daemon is asked each time what a domain is doing; vtk keeps of it what it keeps of every machine, and the URI.
"""
