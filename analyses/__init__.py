"""The analyses: a file or a folder for each finding."""
