"""The command line: parse, call one stage function, print, exit."""

LEVELS = ("participant", "group")
"""Of the BIDS App."""
