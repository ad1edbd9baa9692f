"""One experiment: what is to be done, with which data and networks, how it is trained, and what it gave."""
