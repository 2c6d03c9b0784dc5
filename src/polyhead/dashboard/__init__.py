"""The dashboard's server: every question that its page asks, answered over HTTP with what the library computes.

Whoever wants to know what can be asked reads `requests`, and what comes back `comparing`, `composing` and `planning`.
"""
