"""Files: bytes in, NumPy arrays and cells out. What is no good is named by file and line; no data set is known here."""
