"""The HTTP front end: the OpenAI protocol over one Runtime, for programs on this machine.

A front end like any other: it uses the public API and events of `edgekv`, nothing below.
"""
