"""The miniature worlds, and the small models that are built for them.

The general path never imports this package: its registries of data sources (`merit.data.sources`)
and of base builders (`merit.train.base_phases`) load it by name (tested). Nothing here imports `eval`.
"""
