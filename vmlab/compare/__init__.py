"""What differs between two states of guests: a pure library over the files of snapshots."""
