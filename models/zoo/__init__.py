"""Network architectures, one family a file: the paper's table as data, then a builder for each framework."""
