"""One experiment: its specification, data, networks, training and evaluation."""
