"""The commands, a file for each; what they share is in console, listing, options and remote."""
