"""Whole clusters on a virtual clock, network and disk, reproducible from a seed.

Simulations run the shipped state machines and loops. They never wait, and do no I/O outside this
process.
"""
