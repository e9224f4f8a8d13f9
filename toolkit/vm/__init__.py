"""Machines that stay: made, started, reached and deleted by name, on a provider (`provider.Provider`).

Everything vtk knows of a machine is in its directory (`directory`); what it is doing, the provider is asked each time.
"""
