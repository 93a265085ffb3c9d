"""How a state is written and continued.

How it works, in the order of a machine's life:

* ``save`` writes a snapshot of a running guest: QEMU migrates into a *mapped-ram* file while the guest runs, in which
  every page of RAM has a fixed place. Then the disks get new overlays, the screen is taken, and the guest goes on.
* ``load`` continues a snapshot: QEMU starts with its RAM mapped copy-on-write from that file, so nothing is read, and
  loads a *thin* copy of the stream that holds everything but the RAM.
* ``delta`` saves what a guest has changed since its RAM was mapped: the pages that were copied on write.
* ``stream`` is QEMU's own part of a save: its migration to a file, until the guest stands still.
* ``mapped_ram`` is the file format.
"""
