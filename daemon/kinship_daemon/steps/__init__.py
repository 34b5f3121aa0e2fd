"""
The steps: a file per kind of job (their order is in `cycle.py`), and what several of them share.

Shared are whose bytes count (`leaves`, `living`), how a model is made (`assemblies`, `recipes`),
its scores (`scores`, `evaluation`), what is held against a candidate (`objections`, `novelty`),
what a policy is told (`facts`), and what a card says (`card_facts`).
"""
