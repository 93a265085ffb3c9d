"""The host: what it can do, what it has, and what stays reserved."""
