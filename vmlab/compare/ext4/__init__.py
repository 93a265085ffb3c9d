"""ext2, ext3 and ext4, read without mounting and without changing anything; the journal is replayed in memory."""

from __future__ import annotations

from vmlab.compare.ext4.filesystem import Ext4

__all__ = ["Ext4"]
