"""The configuration of a run: what can be set, how it is read, and what is refused before anything starts.

bounds          ranges of numbers
key_field       how a key is written down
schema          every key with its type, default, meaning and range, one dataclass per section
actor_schema    the longest of them, the actor's
free_to_change  the keys that a run may change when it goes on
yaml            YAML as recipes use it: one meaning for every scalar, one-line errors
keys            the schema as a table of keys: find one by name, convert a value to its type
loading         command line -> Config (defaults <- recipe <- key=value), and Config -> the file that records it
help            the text of --help
checks          what cannot work: pure (keys, number of processes), pipeline (layers on stages), machine (files, CUDA,
                judge), model (its shape), engine
"""
