"""What a node is given beside what serves the model, in phases.

Each phase looks at the machine itself and brings only what is missing, so that a second run changes nothing
and one after a failure goes on where that stopped.
"""
