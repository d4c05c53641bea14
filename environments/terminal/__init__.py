"""Terminal: file errands on a simulated computer and a remote host; their peculiarities are hidden."""
