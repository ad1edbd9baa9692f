"""How the runs of a comparison are chosen, and how workers carry them out."""
