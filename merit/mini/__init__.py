"""The miniature worlds, and the small models that are built for them.

General code never imports this package: the registries of data sources (`merit.data.sources`) and
base builders (`merit.train.registry`) load it by name. Nothing here imports `merit.eval`.
"""
