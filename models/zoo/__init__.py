"""Network architectures, one file for each family: the paper's table as data, then a builder for each framework."""
