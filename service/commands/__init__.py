"""The command line, a file for each command; console, listing, options and remote are shared by them."""
