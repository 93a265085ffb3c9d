"""What vmlab keeps on disk: records, disk layers, locks, and the collection of what nothing refers to."""
