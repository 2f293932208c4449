"""Search over a folder of documents: read and cut them, embed the passages, find the nearest."""
