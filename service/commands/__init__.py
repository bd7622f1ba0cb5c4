"""The command line, one file for each command. The commands share console, listing, options and remote."""
