"""What guests may reach: the filter between their network cards and the outside, and the process that it runs in."""
