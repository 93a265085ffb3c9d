"""What is done to a machine, one module a deed, each beside its recovery.

All of it takes a store and a name, never an object. Internal: the objects (:class:`vmlab.Lab`, :class:`vmlab.Machine`)
are the doors to it.
"""
