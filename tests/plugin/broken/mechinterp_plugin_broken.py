"""A module that does not import, like one written for another version of the toolkit."""

raise RuntimeError("written for another version")
