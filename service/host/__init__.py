"""The host: cores, memory, threads, confined child processes. Imports none of the other rooms."""
