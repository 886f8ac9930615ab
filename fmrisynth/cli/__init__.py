"""The command line: parse, call one stage function, print, exit."""
