"""Attention heads: what they write, what they add to an answer, what they do in running text."""
