"""The report: tables, figures and pages, all generated from an experiment's artifacts.

`build.build_report` writes `reports/<experiment>/`; `index.build_index` writes `reports/README.md`
and the results in the top README.md. Inputs are listed by `merit.config.branches.plan`, never found
by listing a folder.
"""
