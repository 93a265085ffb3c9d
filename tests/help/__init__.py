"""What tests of several files share: guests' disks, servers, a lab in memory, processes that die."""
