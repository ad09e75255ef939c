"""The command line: ``lowland COMMAND``; one file per command, heavy imports inside the commands."""
