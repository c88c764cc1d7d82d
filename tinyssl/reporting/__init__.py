"""The HTML report of a run: its files, their interpretation, and what its features show."""
