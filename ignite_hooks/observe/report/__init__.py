"""Makes a page from the records of runs, to look at with a browser."""
