"""Whole clusters under a virtual clock, network and disk, from one seed.

What runs here is what ships: the state machines and loops of the other rooms. Nothing waits, and
nothing is read or written outside this process.
"""
