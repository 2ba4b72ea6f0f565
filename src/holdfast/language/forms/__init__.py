"""The forms in which rows of text and label are stored: each reader gives the entries of one table."""
