"""
Schema 4: the evidence and the order of every judgement of the gate.

The levels of the gate follow from all judgements before. Those of the gate before have no p; they
are numbered by generation, then model.
"""

__all__ = ["FOURTH"]

FOURTH = (
    "ALTER TABLE gates RENAME COLUMN parent TO against",
    "ALTER TABLE gates ADD COLUMN p REAL CHECK (p BETWEEN 0 AND 1)",
    "ALTER TABLE gates ADD COLUMN alpha REAL CHECK (alpha BETWEEN 0 AND 1)",
    "ALTER TABLE gates ADD COLUMN test INTEGER",
    """UPDATE gates SET test = numbered.test FROM (
        SELECT gates.number,
            row_number() OVER (ORDER BY generation, id, gates.number) AS test
        FROM gates JOIN models ON models.number = gates.model
    ) AS numbered WHERE numbered.number = gates.number""",
    "CREATE UNIQUE INDEX gates_by_test ON gates (test)",
)
