"""Looking at states without touching machines: presents caught, disks read, two states compared, several in a row.

Internal: :class:`vmlab.Diff` and :class:`vmlab.Timeline` are what people get from it.
"""
