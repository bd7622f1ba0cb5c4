"""What the host offers: cores, memory, threads, confined child processes. Imports none of the other rooms."""
