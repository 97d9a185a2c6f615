"""Faults put into the package and into committed outputs, one at a time: `make mutants` says which stay unseen."""
