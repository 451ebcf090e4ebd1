"""Pure torch: global magnitude pruning, its masks and schedules. Prints nothing and writes no files."""
