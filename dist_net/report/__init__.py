"""The report of a run on a folder of pictures: its numbers, as a page, and as a picture."""
