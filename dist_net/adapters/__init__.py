"""Modules of other libraries as gradient functions; each file needs its library."""
