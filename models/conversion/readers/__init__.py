"""Files of weights -> a network of its framework. Imports graph, artifact, the catalog and the zoo."""
