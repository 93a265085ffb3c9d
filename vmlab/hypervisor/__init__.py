"""Everything that touches libvirt or QEMU: the account they run as, connection, domain XML, monitor, events.

Nothing outside this package imports libvirt; a test holds that.
"""
