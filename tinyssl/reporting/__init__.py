"""A finished run as one HTML page: read its files, say what they mean, show what it sees."""
