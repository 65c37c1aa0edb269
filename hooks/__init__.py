"""Edits at hook points: what is done to one activation, given by name to `applied`."""
