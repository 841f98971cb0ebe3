"""rtrack's resource tracker in place of Python's own.

`python -m rtrack enable` makes the resource trackers of an environment `rtrack daemon`;
`python -m rtrack --help` says the rest. There is nothing to import from here.
"""
