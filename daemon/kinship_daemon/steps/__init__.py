"""
The steps of a turn of the loop: admission, scoring, evolution, judging, publication.

`making` is what they share about how a model is made, `carding` gathers what a card says.
"""
