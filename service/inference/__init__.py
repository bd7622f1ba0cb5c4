"""A loaded version at work: batches, engines, answers. Imports images and host."""
