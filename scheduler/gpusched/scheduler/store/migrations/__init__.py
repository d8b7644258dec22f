"""Steps from one schema to the next, in order; each is a file in `versions`."""
