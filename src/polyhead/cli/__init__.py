"""The command line, a file for each command; none is imported before it is asked for."""
