"""One module a study: `draw(result, folder)` draws its figures from the stored result.json alone.

They lie in `folder`/figures, a PNG and a PDF each (eval.report.style.save).
"""
