"""The report: tables, figures and pages, all generated from an experiment's artifacts.

`build.build_report` writes `reports/<experiment>/`; `build.build_index` joins the experiments into
`reports/README.md`. Inputs are listed by `merit.config.branches.plan`, never found by globbing.
"""
