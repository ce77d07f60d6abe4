"""Shows a run to the people who wait for it: losses, speed, remaining time, and a record."""
