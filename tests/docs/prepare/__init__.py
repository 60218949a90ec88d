"""What the pages need to be run: a file for each group of pages, with `PAGES`."""
