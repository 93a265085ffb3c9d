"""What is done to several machines and the networks between them as one.

Below the objects: it takes a store and the name of a scenario.
"""
