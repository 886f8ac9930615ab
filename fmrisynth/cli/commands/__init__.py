"""One module per command, with the command's name: it parses, builds a typed configuration, calls one stage function, prints.

Stage modules are imported inside the commands, so that ``fmrisynth --help`` needs neither torch nor nilearn. A module holds the
command and its ``EXAMPLE``; `fmrisynth.cli.app` lists them.
"""
