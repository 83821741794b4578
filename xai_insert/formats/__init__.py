"""Adapters: everything that knows a file format. A format's library is imported by its adapter and nothing else."""
